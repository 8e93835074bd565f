# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Open a page in Qt's Chromium without a screen: ``python browser_page.py PAGE WIDTH light|dark`` prints what it found.

One JSON object: console (what the page said), requests (addresses beside the page's own), page (what the script below
returns). ``--picture FILE`` keeps what it looks like.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

_LOOK = """(() => {
  const all = selector => [...document.querySelectorAll(selector)];
  const drawn = all('figure > svg');
  const mark = document.querySelector('figure .mark');
  mark.scrollIntoView({block: 'center'});
  const box = mark.getBoundingClientRect();
  const hit = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return JSON.stringify({
    wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    height: document.documentElement.scrollHeight,
    paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    letters: Math.min(...all('figure > svg text').map(each => each.getBoundingClientRect().height)),
    outside: drawn.filter(each => { const b = each.getBBox(); return b.x < 0 || b.x + b.width > 361; }).length,
    figures: drawn.length,
    scripts: document.scripts.length,
    hovered: hit.closest('g').querySelector('title').textContent,
  });
})()"""


def main(page: str, width: int, scheme: str, picture: str | None) -> None:
    """Open, look, print."""
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    dark = " --blink-settings=preferredColorScheme=0" if scheme == "dark" else ""
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = f"--no-sandbox --disable-gpu --hide-scrollbars{dark}"
    from PyQt6.QtCore import QTimer, QUrl
    from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
    from PyQt6.QtWebEngineWidgets import QWebEngineView
    from PyQt6.QtWidgets import QApplication

    application = QApplication(sys.argv[:1])
    found: dict[str, object] = {"console": [], "requests": []}
    own = QUrl.fromLocalFile(str(Path(page).resolve()))

    class Page(QWebEnginePage):  # type: ignore[misc] # without types where it is not installed
        def javaScriptConsoleMessage(self, *said: object) -> None:  # noqa: N802 - Qt's name
            found["console"].append([str(each) for each in said])  # type: ignore[attr-defined]

    class Requests(QWebEngineUrlRequestInterceptor):  # type: ignore[misc] # as above
        def interceptRequest(self, info: object) -> None:  # noqa: N802 - Qt's name
            if info.requestUrl() != own:  # type: ignore[attr-defined]
                found["requests"].append(info.requestUrl().toString())  # type: ignore[attr-defined]

    view, requests = QWebEngineView(), Requests()
    shown = Page(view)
    shown.profile().setUrlRequestInterceptor(requests)
    view.setPage(shown)
    view.resize(width, 900)
    view.show()

    def end() -> None:
        if picture is not None:
            view.grab().save(picture)
        application.quit()

    def told(text: str) -> None:
        found["page"] = json.loads(text)
        view.resize(width, min(int(found["page"]["height"]), 9000) if picture else 900)  # type: ignore[index]
        QTimer.singleShot(1000 if picture else 0, end)

    def loaded(_: bool) -> None:
        QTimer.singleShot(500, lambda: shown.runJavaScript(_LOOK, told))

    shown.loadFinished.connect(loaded)
    view.load(own)
    QTimer.singleShot(60_000, application.quit)
    application.exec()
    print(json.dumps(found))


if __name__ == "__main__":
    given = sys.argv[1:]
    kept = given[given.index("--picture") + 1] if "--picture" in given else None
    main(given[0], int(given[1]), given[2], kept)
