# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The site's generated pages: from docstrings, ``--help``, the settings' class, the schemas and the table of releases."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
SCHEMAS = ROOT / "packages/expert-maps/src/expert_maps/schemas"


def pages() -> dict[str, str]:
    """Return the generated pages: path → Markdown."""
    return {
        "reference/library.md": "# The library\n\n" + library(),
        "reference/commands.md": "# The command line\n\n" + commands(),
        "reference/settings.md": "# Settings of the plugin\n\n" + settings(),
        "reference/releases.md": "# Releases\n\n" + releases(),
        "reference/schema.md": "# JSON Schema\n\n" + schemas(),
    }


def library() -> str:
    """Return what mkdocstrings fills with the docstrings of all that is public."""
    import expert_maps

    return "\n\n".join(f"::: expert_maps.{name}" for name in sorted(expert_maps.__all__) if name[0] != "_")


def commands() -> str:
    """Return the ``--help`` of each command."""
    from expert_maps.cli.commands import COMMANDS

    environ = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    parts = []
    for name in ("", *COMMANDS):
        words = [name, "--help"] if name else ["--help"]
        run = subprocess.run(  # noqa: S603 - this interpreter
            [sys.executable, "-m", "expert_maps", *words],
            check=True,
            capture_output=True,
            text=True,
            env=environ,
        )
        title = f"expert-maps {name}".strip()
        text = run.stdout.replace("python -m expert_maps", "expert-maps").strip("\n")
        parts.append(f"## {title}\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


def settings() -> str:
    """Return every setting of the plugin: its name, its environment variable, its default and what it does."""
    from vllm_ascend_moe.core.settings import ENV_PREFIX, Settings

    described = attributes(inspect.getdoc(Settings) or "")
    lines = [
        "Given as `--additional-config '{\"expert_maps\": {…}}'`, or as an environment variable, which an entry of the",
        "config overrules. [Which works where](../packages/vllm-ascend-moe/docs/options.md).",
        "",
        "| setting | environment variable | default | what it does |",
        "|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = json.dumps(field.default)
        text = described[name].replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{name}` | `{ENV_PREFIX}{name.upper()}` | `{default}` | {text} |")
    schema = json.dumps(Settings.model_json_schema(), indent=2, ensure_ascii=False)
    return "\n".join(lines) + f"\n\n## As JSON Schema\n\n```json\n{schema}\n```"


def attributes(docstring: str) -> dict[str, str]:
    """Return what a docstring says of each attribute."""
    part = docstring.split("Attributes:\n", 1)[1].split("\n\n", 1)[0]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", part, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def releases() -> str:
    """Return the table of releases as the plugin has it."""
    from vllm_ascend_moe.releases import VLLM, markdown

    return (
        f"The plugin serves in vLLM {VLLM} alone, and beside these releases of vllm-ascend. The table is the one that the\n"
        "plugin itself decides by; `vllm-ascend-moe releases` prints it.\n\n" + markdown()
    )


def schemas() -> str:
    """Return the published schemas of map files."""
    parts = ["`expert-maps convert --schema` prints the newest."]
    for path in sorted(SCHEMAS.glob("*.json"), reverse=True):
        text = json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=2, ensure_ascii=False)
        parts.append(f"## {path.stem}\n\n```json\n{text}\n```")
    return "\n\n".join(parts)
