"use strict";
const one = (name) => document.getElementById(name);
function show() {
  const arm = one("arm").value, kind = one("kind").value, words = one("words").value.toLowerCase();
  const chosen = document.querySelector(`section[data-arm="${CSS.escape(arm)}"]`);
  for (const part of document.querySelectorAll("section[data-arm]")) part.hidden = part !== chosen;
  if (!chosen) return;
  const cluster = chosen.querySelector("select.cluster").value;
  let count = 0;
  for (const row of chosen.querySelectorAll("article")) {
    const fits = (kind === "all" || row.dataset.kinds.split(" ").includes(kind))
      && (cluster === "" || row.dataset.cluster === cluster)
      && (words === "" || row.textContent.toLowerCase().includes(words));
    row.hidden = !fits;
    count += fits;
  }
  one("count").textContent = `${count} questions`;
}
for (const part of document.querySelectorAll("select, input")) part.addEventListener("input", show);
show();
