# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Names of torch_npu that vllm-ascend imports or looks up, and that do nothing here: all of them in one list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_npu import _hccl
from torch_npu._imports import ImportedOnly, add_module

if TYPE_CHECKING:
    import torch

# Numbers by which torch_npu calls dtypes that torch lacks, as the real one has them.
DTYPES = {"hifloat8": 290, "float8_e8m0fnu": 293, "float4_e2m1fn_x2": 296}


class Format:
    """Numbers of memory formats; whatever is asked for, tensors stay as they are."""

    ND = 2
    NCHW = 0
    NHWC = 1
    FRACTAL_NZ = 29


def add_modules() -> None:
    """Make torch_npu's submodules."""
    only = ImportedOnly
    dynamic = add_module("torch_npu.profiler.dynamic_profile", init=_nothing, step=_nothing)
    profiler = "torch_npu.profiler"
    add_module(
        profiler,
        dynamic_profile=dynamic,
        **{
            name: only(f"{profiler}.{name}")
            for name in (
                "AiCMetrics",
                "ExportType",
                "ProfilerActivity",
                "ProfilerLevel",
                "_ExperimentalConfig",
                "profile",
                "tensorboard_trace_handler",
            )
        },
    )
    add_module("torch_npu.op_plugin")
    add_module("torch_npu.op_plugin.atb")
    add_module("torch_npu.op_plugin.atb._atb_ops", _register_atb_extensions=_nothing)
    add_module(
        "torch_npu._C",
        _weak_ref_tensor=_same,
        _NPUTaskGroupHandle=type("_NPUTaskGroupHandle", (), {}),
    )
    add_module("torch_npu._C._distributed_c10d", ProcessGroupHCCL=_hccl.ProcessGroupHCCL)
    add_module("torch_npu.distributed")
    add_module("torch_npu.multiprocessing")
    add_module(
        "torch_npu.multiprocessing.reductions",
        rebuild_npu_tensor=only("torch_npu.multiprocessing.reductions.rebuild_npu_tensor"),
    )
    add_module("torch_npu._inductor")
    # Of vllm-ascend: it changes how torchair makes graphs, of which there are none.
    add_module("vllm_ascend.patch.worker.patch_npugraph_ex_triton")


def _nothing(*_: object, **__: object) -> None:
    """Do nothing."""


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
