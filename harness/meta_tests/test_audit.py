# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from harness.sessions import audit as module
from harness.sessions.audit import audit

ROOT = Path(__file__).parents[2]
PIN = f"torch==2.13.0 ; sys_platform == 'linux' \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{'1' * 64}\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which all has a hash."""
    monkeypatch.setattr(module, "ALLOWED", {})
    for folder in ("requirements", ".ci", "harness/src/harness"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "requirements/dev.txt").write_text(f"# By hand.\n{PIN}", encoding="utf-8")
    (tmp_path / ".ci/run").write_text(
        "python -m pip install --quiet --require-hashes -r requirements/dev.txt\n", encoding="utf-8"
    )
    (tmp_path / "noxfile.py").write_text(
        "def lint(session):\n    session.install('--require-hashes', '-r', 'requirements/dev.txt')\n"
        "    wheels.install()\n",
        encoding="utf-8",
    )
    assert audit(tmp_path) == []
    return tmp_path


def test_all_that_is_installed_here_has_a_hash() -> None:
    assert audit(ROOT) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("torch==2.13.0\n", "torch==2.13.0 has no SHA-256"),
        (PIN + "numpy==2.0\n", "numpy==2.0 has no SHA-256"),
        (f"torch>=2.13 --hash=sha256:{'0' * 64}\n", "'torch>=2.13'; expected NAME==VERSION"),
        (f"torch==2.13.0 --hash=md5:{'0' * 32}\n", "torch==2.13.0 has no SHA-256"),
        (f"torch==2.13.0 --hash=sha256:{'0' * 63}\n", "torch==2.13.0 has no SHA-256"),
        ("-r other.txt\n", "'-r other.txt'; expected NAME==VERSION"),
        ("--extra-index-url http://a.b\n", "expected NAME==VERSION"),
        (f"torch @ http://a.b/torch.whl --hash=sha256:{'0' * 64}\n", "expected NAME==VERSION"),
        ("# nothing\n", "pins nothing"),
    ],
)
def test_a_line_without_a_hash_is_found(checkout: Path, text: str, said: str) -> None:
    (checkout / "requirements/new.txt").write_text(text, encoding="utf-8")
    (found,) = audit(checkout)
    assert found.startswith("requirements/new.txt: ")
    assert said in found


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        (
            "noxfile.py",
            "class A:\n    def new(self, session):\n        session.install('ruff')\n",
            "noxfile.py::A.new",
        ),
        ("noxfile.py", "def new(session, words):\n    session.install(*words)\n", "noxfile.py::new"),
        (
            "harness/src/harness/new.py",
            "def f():\n    words = [sys.executable, '-m', 'pip', 'install']\n    run([*words, 'ruff'])\n",
            "harness/src/harness/new.py::f",
        ),
        (
            "harness/src/harness/new.py",
            "async def f():\n    run(('pip', 'download', 'ruff'))\n",
            "harness/src/harness/new.py::f",
        ),
        (".ci/run", "set -e\npip install ruff\n", ".ci/run::pip install ruff"),
        (
            ".ci/run",
            "pip install --require-hashes -r a.txt && pip install ruff\n",
            ".ci/run::pip install ruff",
        ),
        ("CONTRIBUTING.md", "$ npm install left\n", "CONTRIBUTING.md::$ npm install left"),
    ],
)
def test_an_installation_without_a_hash_is_found(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, place: str
) -> None:
    (checkout / name).write_text(text, encoding="utf-8")
    (found,) = audit(checkout)
    assert found.startswith(f"{place}: installs without a hash")
    monkeypatch.setattr(module, "ALLOWED", {place: "a reason"})
    assert audit(checkout) == []
    (checkout / name).write_text("", encoding="utf-8")
    (found,) = audit(checkout)
    assert found == f"{place}: allowed, and installs nothing without a hash"


def test_members_of_the_checkout_need_no_hash(checkout: Path) -> None:
    (checkout / ".ci/run").write_text(
        "pip install --no-deps --no-build-isolation -e harness\n", encoding="utf-8"
    )
    assert audit(checkout) == []
