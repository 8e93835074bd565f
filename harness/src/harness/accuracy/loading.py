# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A configuration from its file, which may come from a stranger."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from expert_maps import ExpertMapsError
from expert_maps.files import describe, read_bytes
from expert_maps.formats.yaml_text import parse_yaml
from harness.accuracy.arms import told
from harness.accuracy.config import MODELS, ConfigError, ModelConfig
from harness.accuracy.trust import find_strange

# A configuration has some 3,000.
MAX_BYTES = 2**18
_DECIMAL = re.compile(r"[-+]?[0-9]*\.[0-9]+([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+")


def load_config(model: str, *, trusted: bool = False) -> ModelConfig:
    """Read a configuration.

    Args:
        model: the name of a file of `accuracy/models`, which is this checkout's own, or a path that ends in .yaml or .yml.
        trusted: whether the file may set what can run code; see `harness.accuracy.trust`.

    Raises:
        ConfigError: see the class.
        FormatError: the file cannot be read.
    """
    path = Path(model)
    if path.suffix not in {".yaml", ".yml"}:
        path, trusted = MODELS / f"{model}.yaml", True
        if not path.exists():
            known = ", ".join(sorted(found.stem for found in MODELS.glob("*.yaml"))) or "none"
            msg = f"model is {model!r}; expected a .yaml file or one of {MODELS}: {known}"
            raise ConfigError(msg)
    content = read_bytes(path, MAX_BYTES)
    try:
        document = parse_yaml(content)
    except ExpertMapsError as error:
        msg = f"{describe(path)}: {error}"
        raise ConfigError(msg) from error
    if not isinstance(document, dict):
        msg = f"{describe(path)}: holds {type(document).__name__}; expected a mapping"
        raise ConfigError(msg)
    return parse_config(document, describe(path), trusted=trusted)


def parse_config(document: dict[str, Any], source: str, *, trusted: bool = True) -> ModelConfig:
    """Validate what a file holds.

    Args:
        document: what stands in it.
        source: what messages call it.
        trusted: as `load_config`.

    Raises:
        ConfigError: see the class.
    """
    try:
        # By way of JSON: YAML's lists are pydantic's tuples there, and dates or other objects are refused.
        config = ModelConfig.model_validate_json(json.dumps(_numbers(document)), strict=True)
    except TypeError as error:
        msg = f"{source}: {error}; expected plain text and numbers"
        raise ConfigError(msg) from error
    except ValidationError as error:
        msg = f"{source}: {told(error)}"
        raise ConfigError(msg) from error
    if not trusted and (strange := find_strange(config)):
        msg = f"{source}: {strange}"
        raise ConfigError(msg)
    return config


# Where a decimal is a text: names, variables, arguments.
_TEXTS = frozenset(
    {"environment", "arguments", "name", "model", "dataset", "source", "reason", "chat_template_kwargs"}
)


def _numbers(value: Any, key: object = None) -> Any:  # noqa: ANN401 - JSON
    """Return the document with decimals as numbers, which the reader of maps leaves as texts."""
    if key in _TEXTS:
        return value
    if isinstance(value, dict):
        return {name: _numbers(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else value
