# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One side of a comparison: how a server is started, and which placement it is given."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from expert_maps import ExpertMapsError, FormatError, Placement, generate_placement
from expert_maps.files import parse_json, printable, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The key under which the plugin finds its options in vLLM's additional config.
EXPERT_MAPS = "expert_maps"
# Only the harness knows these paths, so a file may not set them.
_OWN_OPTIONS = {"record_load": "record_path", "plan": "expert_map_path"}
# The harness chooses these when it starts a server.
_OWN_ARGUMENTS = (
    "--config",  # a file that may hold the others
    "--model",
    "--host",
    "--port",
    "--dtype",
    "--additional-config",
    "--served-model-name",
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Count = Annotated[int, Field(ge=1)]
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Strict(BaseModel):
    """What a file says: nothing that is not known, and nothing that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def told(error: ValidationError) -> str:
    """Return where the first thing that is wrong with a document stands, what it is, and what was expected."""
    first = error.errors()[0]
    place = printable(".".join(map(str, first["loc"])) or "the file", 200)
    # What a validator of an arm's options says names them as they were written.
    reason = printable(str(first.get("ctx", {}).get("error") or first["msg"]), None)
    found = "" if first["type"] in {"missing", "value_error"} else f" is {first['input']!r:.200}"
    return f"{place}{found}: {reason}"


_Row = TypeVar("_Row", bound=BaseModel)


def read_rows(path: Path, kind: type[_Row], expected: str) -> Iterator[tuple[int, _Row]]:
    """Yield the lines of a JSONL file that are not blank, each with its number from 1.

    Args:
        path: of the file.
        kind: what each line must hold.
        expected: the same in words.

    Raises:
        FormatError: the file cannot be read, or a line holds something else.
    """
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):  # other separators may stand in a text
        if not line.strip():
            continue
        try:
            row = kind.model_validate(parse_json(line, str(path)), strict=True)
        except (ExpertMapsError, ValidationError) as error:
            msg = f"{path}, line {number}: {line.decode(errors='replace')[:80]!r}; expected {expected}"
            raise FormatError(msg) from error
        yield number, row


class Plan(Strict):
    """A placement made before the arm is served: planned from a load, or a layout by name where there is none.

    Attributes:
        load_of: the arm whose recorded load is planned for.
        load: a file of load, instead of an arm.
        layout: of `expert_maps.generate_placement`, instead of a load.
        num_experts: E, logical; with a layout only, as a load says it.
        num_layers: MoE layers; likewise.
        num_redundant_experts: of a layer, over all ranks.
        ep_size: ranks.
    """

    load_of: Name | None = None
    load: str | None = None
    layout: Literal["ring", "append"] | None = None
    num_experts: Count | None = None
    num_layers: Count | None = None
    num_redundant_experts: Annotated[int, Field(ge=1)]
    ep_size: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def _has_a_load(self) -> Plan:
        if [self.load_of, self.load, self.layout].count(None) != 2:  # noqa: PLR2004 - of three
            msg = "a plan needs one of load_of (an arm), load (a file) and layout (a name)"
            raise ValueError(msg)
        sizes = [self.num_experts, self.num_layers]
        if sizes.count(None) != (0 if self.layout else len(sizes)):
            msg = f"a plan has num_experts {sizes[0]} and num_layers {sizes[1]}; expected both with a layout, else neither"
            raise ValueError(msg)
        try:
            self.named()
        except ExpertMapsError as error:
            msg = f"the layout {self.layout} does not fit: {str(error).splitlines()[0]}"
            raise ValueError(msg) from error
        return self

    def named(self) -> Placement | None:
        """Return the placement of the layout; None where one is planned from a load.

        Raises:
            ExpertMapsError: there is none of these sizes.
        """
        if self.layout is None or self.num_experts is None or self.num_layers is None:
            return None
        return generate_placement(
            self.layout,
            num_experts=self.num_experts,
            ep_size=self.ep_size,
            num_layers=self.num_layers,
            num_redundant_experts=self.num_redundant_experts,
        )


class Serving(Strict):
    """How a server is started: arguments of ``vllm serve`` and environment variables."""

    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = {}

    @model_validator(mode="after")
    def _leaves_the_rest(self) -> Serving:
        for argument in self.arguments:
            # argparse takes an underscore for a dash, and the beginning of a name for the name.
            # A dot leads into an option's object.
            word = re.split(r"[=.]", argument, maxsplit=1)[0].replace("_", "-")
            if len(word) > len("--") and any(own.startswith(word) for own in _OWN_ARGUMENTS):
                msg = f"arguments hold {argument!r}, which the harness sets"
                raise ValueError(msg)
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                msg = f"environment names {name!r}; expected letters, digits and underscores"
                raise ValueError(msg)
        if any("\0" in text for text in (*self.arguments, *self.environment.values())):
            msg = "an argument or a variable holds a NUL character; expected none"
            raise ValueError(msg)
        return self


def check_options(options: dict[str, Any]) -> None:
    """Check the plugin's options before a server is started, one by one and together; only where the plugin is installed.

    Raises:
        ValueError: one is unknown or has a wrong value, or no platform takes them together.
    """
    try:
        from vllm_ascend_moe import releases
        from vllm_ascend_moe.backends.ascend.front import AscendFront
        from vllm_ascend_moe.backends.ascend.front_v2 import AscendV2Front
        from vllm_ascend_moe.backends.cpu_front import CpuFront
        from vllm_ascend_moe.backends.eplb_front import EplbFront
        from vllm_ascend_moe.core.settings import Settings
    except ImportError:
        return
    fronts = [CpuFront(), EplbFront(), *map(AscendFront, releases.RELEASES)]
    fronts += [AscendV2Front(release) for release in releases.RELEASES if release.serves_v2]
    place, refused = f"additional_config.{EXPERT_MAPS}", []
    try:
        settings = Settings(**options)
    except ValidationError as error:
        msg = f"{place}.{told(error)}"
        raise ValueError(msg) from error
    except ExpertMapsError as error:
        msg = f"{place}: {error}"
        raise ValueError(msg) from error
    for front in fronts:
        try:
            front.settle(settings)
        except ExpertMapsError as error:
            refused.append(str(error))
    if len(refused) == len(fronts):
        msg = f"{place}: no platform takes these options: {refused[0]}"
        raise ValueError(msg)


class Arm(Serving):
    """One side of the comparison.

    Attributes:
        role: what must be proven of its server: that EPLB is active, or that it is not; a ``repeat`` is the baseline once
            more, asked in another order, for what rounding does by itself.
        additional_config: vLLM's, as an object; the plugin's options stand under ``expert_maps``.
        record_load: whether the plugin records the expert load.
        plan: the placement to serve, where it is planned here.
        num_redundant_experts: what the server must report; None for any number above 0.
        dynamic: whether experts must have moved while serving.
    """

    role: Literal["baseline", "eplb", "repeat"]
    additional_config: dict[str, Any] = {}
    record_load: bool = False
    plan: Plan | None = None
    num_redundant_experts: Annotated[int, Field(ge=1)] | None = None
    dynamic: bool = False

    @model_validator(mode="after")
    def _agrees(self) -> Arm:
        options = self.additional_config.get(EXPERT_MAPS, {})
        if not isinstance(options, dict):
            msg = f"additional_config.{EXPERT_MAPS} is {options!r}; expected an object"
            raise ValueError(msg)  # noqa: TRY004 - pydantic shows ValueErrors
        for field, option in _OWN_OPTIONS.items():
            if option in options:
                msg = f"{option} is set in {EXPERT_MAPS}; use {field}, for which the harness finds a path"
                raise ValueError(msg)
        # With the paths that the harness will add.
        paths = {
            _OWN_OPTIONS[name]: path
            for name, path in (("record_load", "load.npz"), ("plan", "map.json"))
            if getattr(self, name)
        }
        check_options({**options, **paths})
        if self.role != "eplb" and (self.plan or self.dynamic or self.num_redundant_experts):
            msg = f"a {self.role} has a plan, moving or redundant experts; expected none of them"
            raise ValueError(msg)
        return self

    def additional(self, *, record: Path | None, expert_map: Path | None) -> dict[str, Any]:
        """Return vLLM's additional config with the paths of this run; empty where there is nothing to say."""
        paths = {"record_path": record, "expert_map_path": expert_map}
        options = {name: str(path) for name, path in paths.items() if path is not None}
        if not options:
            return self.additional_config
        return {
            **self.additional_config,
            EXPERT_MAPS: {**self.additional_config.get(EXPERT_MAPS, {}), **options},
        }
