# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What needs the device runs in processes of its own: an emulated torch_npu, a tiny vllm_ascend, two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from typing import TYPE_CHECKING

from harness.emulated_npu import environment, write_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

VERSION = "2.10.0.post4"
# A few schemas in the layout of torch_npu's own list; ops of torch's that it implements are in there too.
YAML = """
autograd:
- func: l1_loss(Tensor self, Tensor target) -> Tensor
custom:
- func: npu_rms_norm(Tensor self, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)
- exposed: true
  func: npu_swiglu(Tensor self, int dim=-1) -> Tensor
- func: npu_fast_gelu(Tensor self) -> Tensor
- func: npu_fast_gelu(Tensor self) -> Tensor
- func: npu_format_cast.Tensor(Tensor self, Tensor dst) -> Tensor
- func: npu_format_cast(Tensor self, int acl_format) -> Tensor
- func: npu_odd(Unknown self) -> Tensor
- func: npu_moe_distribute_dispatch_v2(Tensor x, Tensor expert_ids, str group_ep, int ep_world_size, int ep_rank_id, int moe_expert_num, *, Tensor? x_active_mask=None, int quant_mode=0, int global_bs=0, int expert_token_nums_type=1) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)
symint:
- func: add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor
"""
BINDING = """
TORCH_LIBRARY_EXPAND(_C_ascend, ops)
{
    // ops.def("commented(Tensor x) -> Tensor");
    ops.def("npu_add_rms_norm_bias(Tensor x1, Tensor x2, Tensor gamma, "
            "Tensor? beta=None, float epsilon=1e-6) -> (Tensor y, Tensor rstd, Tensor x)");
    ops.def(
        "weak_ref_tensor(Tensor input) -> Tensor"
    );
}
"""


def write_wheel(folder: Path, text: str = YAML) -> Path:
    path = folder / f"torch_npu-{VERSION}-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml", text)
    return path


def write_vllm_ascend(folder: Path) -> Path:
    """Write a package vllm_ascend with a compiled library that holds nothing but strings."""
    package = folder / "vllm_ascend"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "_build_info.py").write_text("__device_type__ = 'never read'\n", encoding="utf-8")
    strings = (
        "_ZN3foo", "npu_gemma_rms_norm(Tensor x, Tensor gamma,     float epsilon=1e-6)-> (Tensor y ,Tensor rstd)",
        "could not do it(x) -> y", "bgmv_shrink(Tensor! x) -> ()",
    )  # fmt: skip
    (package / "vllm_ascend_C.cpython-311-x86_64-linux-gnu.so").write_bytes(
        b"\x7fELF\0\x01\0" + b"\0".join(text.encode() for text in strings) + b"\0"
    )
    return package


def variables(folder: Path, **changes: object) -> dict[str, str]:
    """Return the environment of a process that loads the emulation."""
    metadata = folder / "metadata"
    write_metadata(metadata, VERSION)
    options = {"torch_npu_wheel": write_wheel(folder), "chip": "A3", "before": (folder,), **changes}
    return environment(metadata, **options)  # type: ignore[arg-type]


def start(script: str, environ: Mapping[str, str], *arguments: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EMULATED_NPU")}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env={**kept, "OMP_NUM_THREADS": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, environ: Mapping[str, str], *arguments: str) -> tuple[int, str, str]:
    """Run a script to its end: exit code, output, errors."""
    process = start(script, environ, *arguments)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err
