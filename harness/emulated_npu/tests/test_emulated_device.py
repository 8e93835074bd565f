# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from emulated_processes import BINDING, VERSION, run, variables, write_vllm_ascend, write_wheel

from harness import emulated_npu

if TYPE_CHECKING:
    from pathlib import Path

DEVICE = """
import json, torch
found = {"device": torch.zeros(2, device="npu:1").device.type, "moved": torch.ones(2).to("npu").sum().item()}
found["linear"] = torch.nn.Linear(3, 2).to("npu")(torch.ones(1, 3).npu()).shape[1]
found["count"], found["soc"] = torch.npu.device_count(), torch.npu.get_soc_version()
with torch.device("npu"):
    found["context"] = torch.arange(3).sum().item()
found["like"] = torch.empty_like(torch.ones(2, 3).t(), device="npu").stride()
torch.zeros(2).record_stream(torch.npu.Stream())
found["pinned"] = torch.zeros(2, pin_memory=True).new_empty(3, pin_memory=True).pin_memory().is_pinned()
found["histc"] = torch.histc(torch.tensor([0, 2, 2, 4, 5], dtype=torch.int32), bins=4, min=0, max=4).tolist()
torch.npu.set_device("npu:3")
with torch.npu.device(1):
    found["inside"] = torch.npu.current_device()
found["after"] = torch.npu.current_device()
torch.manual_seed(5)
first = torch.rand(1)
torch.npu.manual_seed(5)
found["seeded"] = torch.equal(torch.rand(1), first)
events = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
torch.npu.current_stream().record_event(events[1])
found["elapsed"] = events[0].elapsed_time(events[1]) >= 0
with torch.npu.stream(torch.npu.Stream()):
    torch.npu.synchronize()
found["memory"] = [now[0] for now in (torch.npu.mem_get_info(), torch.npu.mem_get_info())]
import torch_npu
found["version"] = torch_npu.__version__
found["norm"] = torch_npu.npu_rms_norm(torch.full((1, 4), 3.0), torch.ones(4))[0].tolist()
found["cast"] = torch_npu.npu_format_cast(torch.ones(1, device="npu"), 29).item()
print(json.dumps(found))
"""


def test_npu_is_a_device_whose_tensors_are_on_the_cpu(tmp_path: Path) -> None:
    code, out, err = run(DEVICE, variables(tmp_path, devices=4))
    assert code == 0, err
    found = json.loads(out)
    memory = found.pop("memory")
    assert memory[1] < memory[0]
    assert found.pop("norm")[0] == pytest.approx([1] * 4)
    assert found == {
        "device": "cpu", "moved": 2, "linear": 2, "count": 4, "soc": 253, "context": 3, "like": [1, 3], "pinned": False,
        "histc": [1, 0, 2, 1], "inside": 1, "after": 3, "seeded": True, "elapsed": True, "version": VERSION, "cast": 1,
    }  # fmt: skip


REFUSALS = """
import json, torch, torch_npu, acl.rt, torchair, fla_npu.ops.ascendc, torch_npu.profiler
from torch_npu.profiler import ProfilerLevel
def refused(call):
    try:
        return repr(call())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
x = torch.ones(1, 4)
print(json.dumps([refused(call) for call in (
    lambda: torch_npu.npu_fast_gelu(x),
    lambda: torch.ops.npu.npu_format_cast(x, x),
    lambda: torch_npu.npu_no_such_op,
    lambda: torch.ops.npu.npu_rms_norm(x, x, gain=1),
    lambda: torch.npu.no_such_name,
    lambda: torch.npu.set_device(4),
    lambda: torch.npu.NPUGraph(),
    lambda: torch.npu.memory.NPUPluggableAllocator("a", "b", "c"),
    lambda: torch_npu.profiler.no_such_name,
    lambda: torch_npu.profiler.profile(),
    lambda: ProfilerLevel.Level1,
    lambda: acl.rt.memcpy(),
    lambda: torchair.get_npu_backend(),
    lambda: fla_npu.ops.ascendc.chunk_kda_fwd(),
    lambda: torch.histc(torch.ones(2).long(), bins=2, min=1, max=3),
)]))
"""


def test_what_is_not_given_is_refused_by_its_name(tmp_path: Path) -> None:
    code, out, err = run(REFUSALS, variables(tmp_path, devices=4))
    assert code == 0, err
    found = json.loads(out)
    assert "unexpected keyword" in found[3] or "gain" in found[3]
    assert found[:3] + found[4:] == [
        "NotImplementedError: npu.npu_fast_gelu is not emulated",
        "NotImplementedError: npu.npu_format_cast.Tensor is not emulated",
        "AttributeError: torch_npu.npu_no_such_op is not emulated",
        "AttributeError: torch.npu.no_such_name is not emulated",
        "RuntimeError: torch.npu.set_device: device is 4; expected one below 4",
        "NotImplementedError: torch.npu.NPUGraph is not emulated; expected enforce_eager",
        "NotImplementedError: torch.npu.memory.NPUPluggableAllocator is not emulated; expected no sleep mode",
        "AttributeError: torch_npu.profiler.no_such_name is not emulated",
        "NotImplementedError: torch_npu.profiler.profile is not emulated; it is there to be imported only",
        "<torch_npu.profiler.ProfilerLevel.Level1, imported only>",
        "NotImplementedError: acl.rt.memcpy is not emulated; expected no sleep mode",
        "NotImplementedError: torchair.get_npu_backend is not emulated; it is there to be imported only",
        "NotImplementedError: fla_npu.ops.ascendc.chunk_kda_fwd is not emulated; it is there to be imported only",
        "NotImplementedError: torch.histc: bins 2 from 1 to 3; expected bins of width 1 from 0, for integers",
    ]


CHIP = """
import torch, vllm_ascend._build_info as info, vllm_ascend.vllm_ascend_C
print(info.__device_type__, [hasattr(torch.ops._C_ascend, f"npu_{n}") for n in ("add_rms_norm_bias", "gemma_rms_norm")])
x, ones = torch.tensor([[3.0, 4.0]]), torch.ones(2)
try:
    print(torch.ops._C_ascend.npu_add_rms_norm_bias(x, x, ones)[2].tolist())
except AttributeError:
    try:
        torch.ops._C_ascend.npu_gemma_rms_norm(x, ones)
    except NotImplementedError as error:
        print(error)
"""


@pytest.mark.parametrize("chip", ["A2", "A3"])
@pytest.mark.parametrize("from_source", [False, True])
def test_the_chip_and_the_custom_ops_are_those_of_the_release(
    tmp_path: Path, chip: str, from_source: bool
) -> None:
    package, binding, names = (
        write_vllm_ascend(tmp_path),
        tmp_path / "torch_binding.cpp",
        tmp_path / "names.txt",
    )
    if from_source:
        # A source release has neither a library nor a _build_info.py.
        for path in (package / "_build_info.py", *package.glob("*.so")):
            path.unlink()
        binding.write_text(BINDING, encoding="utf-8")
    code, out, err = run(
        CHIP, variables(tmp_path, chip=chip, binding=binding if from_source else None, names=names)
    )
    assert code == 0, err
    if from_source:
        assert out.splitlines() == [f"{chip} [True, False]", "[[6.0, 8.0]]"]
        assert "_C_ascend.npu_add_rms_norm_bias" in names.read_text(encoding="utf-8").splitlines()
    else:
        assert out.splitlines() == [
            f"{chip} [False, True]",
            "_C_ascend.npu_gemma_rms_norm is not emulated",
        ]
    assert {"vllm_ascend._build_info", "vllm_ascend.vllm_ascend_C"} <= set(
        names.read_text(encoding="utf-8").splitlines()
    )


def test_a_release_without_schemas_is_refused(tmp_path: Path) -> None:
    package = write_vllm_ascend(tmp_path)
    library = next(package.glob("*.so"))
    library.write_bytes(b"\0nothing\0")
    script = "import torch, vllm_ascend.vllm_ascend_C"
    environ = variables(tmp_path)
    assert "no schema of an op was found in vllm_ascend_C.cpython" in run(script, environ)[2]
    library.unlink()
    assert "there is no vllm_ascend_C*.so in" in run(script, environ)[2]


def test_names_are_listed_once_by_all_processes(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    script = "import torch, torch_npu; [torch_npu.npu_swiglu(torch.ones(1, 2)) for _ in range(2)]; torch.npu.synchronize()"
    for _ in range(2):
        code, _, err = run(script, variables(tmp_path, names=names))
        assert code == 0, err
    listed = names.read_text(encoding="utf-8").splitlines()
    assert {"npu.npu_swiglu", "torch.npu.synchronize"} <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (emulated_npu.SOC, "A5", "EMULATED_NPU_SOC is 'A5'; expected A2 or A3"),
        (
            emulated_npu.TORCH_NPU,
            "nowhere.whl",
            "EMULATED_NPU_TORCH_NPU is 'nowhere.whl'; expected the path of",
        ),
        (emulated_npu.TORCH_NPU, "", "EMULATED_NPU_TORCH_NPU is ''; expected the path of"),
        (emulated_npu.TORCH_NPU, __file__, "cannot be read as a wheel of torch_npu"),
        (emulated_npu.DEVICES, "none", "EMULATED_NPUS is 'none'; expected a number from 1 to 1024"),
        (emulated_npu.BINDING, "nowhere.cpp", "EMULATED_NPU_BINDING is 'nowhere.cpp'; expected the path of"),
    ],
)
def test_wrong_variables_stop_the_start(tmp_path: Path, name: str, value: str, message: str) -> None:
    code, _, err = run("import torch", {**variables(tmp_path), name: value})
    assert code != 0
    assert message in err


def test_without_the_entry_point_nothing_is_changed_and_that_is_said(tmp_path: Path) -> None:
    environ = {**variables(tmp_path), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    code, out, err = run(
        "import torch, torch_npu; print(hasattr(torch, 'npu')); torch_npu.npu_swiglu", environ
    )
    assert (code, out) == (1, "False\n")
    assert "torch_npu.npu_swiglu: the emulated NPU is not loaded; torch loads it by the entry point" in err


def test_metadata_and_environment_are_what_torch_looks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = emulated_npu.write_metadata(tmp_path, "2.9.0")
    assert made.name == "torch_npu-2.9.0.dist-info"
    assert (made / "entry_points.txt").read_text(
        encoding="utf-8"
    ) == "[torch.backends]\ntorch_npu = torch_npu:_autoload\n"
    assert (emulated_npu.packages_folder() / "torch_npu" / "__init__.py").is_file()
    with pytest.raises(ValueError, match="chip is 'A5'; expected A2 or A3"):
        emulated_npu.environment(tmp_path, torch_npu_wheel=write_wheel(tmp_path), chip="A5")
    environ = emulated_npu.environment(tmp_path, torch_npu_wheel=tmp_path / "w", chip="A2")
    assert set(environ) == {"PYTHONPATH", emulated_npu.TORCH_NPU, emulated_npu.SOC}
    # What this process imports from, its children do, too, but for what is emulated.
    monkeypatch.setenv("PYTHONPATH", "/mine")
    environ = emulated_npu.environment(tmp_path, torch_npu_wheel=tmp_path / "w", chip="A2")
    assert environ["PYTHONPATH"].endswith(f"{os.pathsep}{tmp_path}{os.pathsep}/mine")


def test_it_says_of_itself_that_it_is_no_hardware(tmp_path: Path) -> None:
    code, out, err = run("import torch_npu; print(torch_npu.IS_EMULATED)", variables(tmp_path))
    assert (code, out) == (0, "True\n"), err
