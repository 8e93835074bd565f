# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The record of a run: where it was made, what proves it, how good the answers were and how fast they came."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

FORMAT: Literal[2] = 2

Kind = Literal[
    "accuracy",  # answers of a served model, arm by arm
    "performance",  # the same arms under a stream of requests
    "planner",  # plans beside other planners'
    "ascend_plans",  # a rearrangement beside vllm-ascend's
    "npu_ops",  # the ops of the MoE layer
    "maps",  # derived maps beside loops
    "commits",  # a layer's commit to vLLM's state
    "serving",  # throughput with and without a static map
    "chaos",  # answers under plans that fail and ranks that are late
    "objectives",  # plans by activated slots, and with redundancy by layer
]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]


def refusal(error: ValidationError) -> str:
    """Return the first thing that is wrong with what was read: field, value and what was expected, in a line."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    reason = str(first.get("ctx", {}).get("error") or first["msg"])
    shown = "" if isinstance(first["input"], dict | list) else f" is {first['input']!r:.80}"
    return f"{field}{shown}: {reason}" if field else reason


class _Model(BaseModel):
    # More than is known here is kept, as a later version may add to it; what is known must be right.
    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


class DeviceRecord(_Model):
    """What was computed on.

    Attributes:
        kind: also torch's name of it.
        name: as its maker says.
        driver: its version; None on a CPU, and where nobody says.
        toolkit: CANN or CUDA with its version; likewise.
    """

    kind: Literal["npu", "cuda", "cpu"]
    name: Text
    driver: str | None = None
    toolkit: str | None = None


class Checkpoint(_Model):
    """Which weights were served.

    Attributes:
        name: a folder's own name, or that of a model hub.
        revision: the hub's, None where the files do not say.
        sha256: over the files, None where they are not here.
    """

    name: Text
    revision: str | None = None
    sha256: str | None = None


class Provenance(_Model):
    """Where and with what a run was made. None and absent names: it is not known, as in older records.

    Attributes:
        date: ISO 8601, UTC.
        commit: of this repository.
        dirty: whether its sources differed from the commit.
        device: what was computed on.
        machine: the architecture, such as `x86_64`.
        system: the operating system.
        cpus: of the machine.
        threads: OMP_NUM_THREADS, "unset" without.
        python: its version.
        versions: distribution → version, of those that are installed and can matter.
        environment: variables that acted; no paths, hosts or secrets.
        checkpoint: None where no model is served.
    """

    date: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    device: DeviceRecord | None = None
    machine: str | None = None
    system: str | None = None
    cpus: Count | None = None
    threads: str | None = None
    python: str | None = None
    versions: dict[str, str] = {}
    environment: dict[str, str] = {}
    checkpoint: Checkpoint | None = None

    @field_validator("date")
    @classmethod
    def _is_a_time(cls, text: str | None) -> str | None:
        if text is not None and datetime.fromisoformat(text).tzinfo is None:
            msg = f"{text!r} names no time zone; expected a time of day in UTC, such as 2026-01-31T12:00:00+00:00"
            raise ValueError(msg)
        return text


class RunRecord(_Model):
    """One run.

    Attributes:
        format: the version of this form; records of before it are read by `harness.record.older`.
        kind: what was run.
        name: what tells it from other runs of its kind.
        settings: the options that were given, and what else fixed the run.
        provenance: where and with what.
        proof: what shows that the run was what it says, such as a placement that was read back.
        quality: how good the answers were.
        performance: times, rates and ratios.
    """

    format: Literal[2] = FORMAT
    kind: Kind
    name: Text
    settings: dict[str, Any] = {}
    provenance: Provenance
    proof: dict[str, Any] = {}
    quality: dict[str, Any] = {}
    performance: dict[str, Any] = {}
