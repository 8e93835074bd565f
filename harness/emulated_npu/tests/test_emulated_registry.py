# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from emulated_processes import BINDING, write_vllm_ascend, write_wheel
from torch_npu import _environment, _registry, _schemas, _triton
from torch_npu._imports import AfterImport, ImportedOnly

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = "npu_op(Tensor self, int size=3, *, Tensor? scale=None, int[] shape=[], str comm='', bool wide=False) -> Tensor"


def made(**given: Any) -> Any:  # noqa: ANN401 - an op
    def npu_op(input: torch.Tensor, *, wide: bool = True) -> tuple[torch.Tensor, bool]:  # noqa: A002
        return input, wide

    given = {"function": npu_op, "ignored": frozenset({"comm"}), **given}
    return _registry._by_schema("npu.npu_op", _registry.Given(**given), SCHEMA)


def test_the_schemas_defaults_hold_and_the_first_argument_may_have_either_name() -> None:
    x = torch.ones(1)
    assert made()(x) == (x, False)
    assert made()(x, 3, scale=None, shape=[], comm="anything", wide=True) == (x, True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"size": 4}, "npu.npu_op: size is 4; expected 3: nothing else is emulated"),
        ({"scale": torch.ones(1)}, "scale is a tensor; expected None"),
        ({"shape": [1]}, r"shape is \[1\]; expected \[\]"),
    ],
)
def test_what_a_function_does_not_take_is_refused_unless_it_is_the_default(
    call: dict[str, Any], message: str
) -> None:
    with pytest.raises(NotImplementedError, match=message):
        made()(torch.ones(1), **call)


def test_an_op_that_is_not_given_refuses_by_its_name() -> None:
    call = _registry.implementation("npu", "npu_no_such_op", "npu_no_such_op(Tensor x) -> Tensor")
    with pytest.raises(NotImplementedError, match=r"npu\.npu_no_such_op is not emulated"):
        call(torch.ones(1))


def test_torch_npus_own_ops_are_read_from_its_wheel(tmp_path: Path) -> None:
    schemas = _schemas.of_torch_npu(write_wheel(tmp_path))
    assert sorted(schemas) == [
        "npu_fast_gelu", "npu_format_cast", "npu_format_cast.Tensor", "npu_moe_distribute_dispatch_v2", "npu_rms_norm",
        "npu_swiglu",
    ]  # fmt: skip
    assert schemas["npu_swiglu"] == "npu_swiglu(Tensor self, int dim=-1) -> Tensor"


def test_vllm_ascends_ops_are_read_from_its_library_or_its_source(tmp_path: Path) -> None:
    library = next(write_vllm_ascend(tmp_path).glob("*.so"))
    assert _schemas.of_library(library) == {
        "bgmv_shrink": "bgmv_shrink(Tensor! x) -> ()",
        "npu_gemma_rms_norm": "npu_gemma_rms_norm(Tensor x, Tensor gamma, float epsilon=1e-6)-> (Tensor y ,Tensor rstd)",
    }
    source = tmp_path / "torch_binding.cpp"
    source.write_text(BINDING, encoding="utf-8")
    assert sorted(_schemas.of_binding(source)) == ["npu_add_rms_norm_bias", "weak_ref_tensor"]


def test_a_kernel_writes_each_tokens_slot() -> None:
    starts, positions = torch.tensor([0, 3, 4, 99]), torch.tensor([2, 3, 4, 9, 0, 0])
    blocks = torch.tensor([[7, 2, 0], [5, 6, 1]], dtype=torch.int32)
    slots = torch.zeros(6, dtype=torch.int64)
    kernel = _triton.jit(do_not_specialize=["num_tokens"])(_triton._compute_slot_mapping_kernel)
    kernel[(3,)](4, 6, starts, positions, blocks, 3, 4, slots, PAD_ID=-1, BLOCK_SIZE=1024)
    wanted = [blocks[row, at // 4] * 4 + at % 4 for row, at in [(0, 2), (0, 3), (0, 4), (1, 9)]]
    assert slots.tolist() == [*(int(slot) for slot in wanted), -1, -1]
    with pytest.raises(NotImplementedError, match="context parallelism"):
        kernel[(3,)](4, 6, starts, positions, blocks, 3, 4, slots, PAD_ID=-1, TOTAL_CP_WORLD_SIZE=2)


def test_another_kernel_is_refused_by_its_name() -> None:
    def some_kernel() -> int:
        return 5

    kernel = _triton.jit(some_kernel)
    with pytest.raises(NotImplementedError, match=r"the Triton kernel some_kernel of .* is not emulated"):
        kernel[(1,)]
    assert kernel() == 5


def test_names_that_are_only_imported_can_be_read_but_not_called() -> None:
    name = ImportedOnly("torchair").core.patch
    assert repr(name) == "<torchair.core.patch, imported only>"
    with pytest.raises(
        NotImplementedError, match=r"torchair\.core\.patch is not emulated; it is there to be imported"
    ):
        name()
    with pytest.raises(AttributeError):
        name.__wrapped__  # noqa: B018


def test_a_module_is_changed_right_after_its_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "emulated_example.py").write_text("HAS_TRITON = True\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    changed: list[object] = []
    finder = AfterImport("emulated_example", lambda module: changed.append(module.HAS_TRITON))
    spec = finder.find_spec("emulated_example")
    assert spec is not None
    assert finder.find_spec("another") is None
    import importlib.util

    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    assert changed == [True]


def test_the_chips_have_vllm_ascends_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for chip, low, high in (("A2", 220, 225), ("A3", 250, 255)):
        monkeypatch.setenv(_environment.SOC, chip)
        assert low <= _environment.SOC_VERSIONS[_environment.soc()] <= high
    monkeypatch.delenv(_environment.SOC)
    assert _environment.soc() == "A2"
    assert not _environment.loaded()
