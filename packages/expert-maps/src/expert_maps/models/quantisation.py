# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The bytes of an expert's projections by quantisation.

Counted as checkpoints hold them, with the types that vLLM 0.32 gives the scales
(``model_executor/layers/quantization``: ``fp8.py``, ``auto_awq.py``, ``auto_gptq.py``, ``mxfp4.py``, ``modelopt.py``,
``compressed_tensors/compressed_tensors_moe``). What is not known here is not counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expert_maps._words import counted
from expert_maps.models.modelslim import W8A8_DYNAMIC, modelslim_bytes
from expert_maps.models.shapes import DTYPE_BYTES, UntoldError, plain_type, untold
from expert_maps.models.values import Config, shown

if TYPE_CHECKING:
    from expert_maps.models.shapes import Shape

_SCALE = 4  # float32
_BYTE = 8
_NVFP4_GROUP = 16
_BITS = (2, 3, 4, 8)
# More names than any model has modules are not looked through.
_MOST_EXCLUDED = 2**17
_LONGEST_NAME = 200
_EXCLUDED_KEYS = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules", "excluded_layers")


def quantised_bytes(config: Config, shape: Shape) -> tuple[int, str]:
    """Return the bytes of an expert, and how its numbers are stored.

    Raises:
        UntoldError: the configuration does not say, or says what is not known here.
    """
    if config.has("expert_dtype"):
        untold(f"expert_dtype is {shown(config.get('expert_dtype'))}, which is not known here")
    quantize = config.get("quantize")
    stated = [config.get(key) for key in ("quantization_config", "compression_config") if config.has(key)]
    if quantize is not None:  # MindIE's replaces what is empty
        stated = [settings for settings in stated if settings]
    if not stated:
        if quantize not in (None, "float"):
            return modelslim_bytes(config, shape, str(quantize).upper(), f"quantize is {shown(quantize)}")
        name, width = plain_type(config)
        return shape.numbers * width, name
    settings = stated[0]
    if not isinstance(settings, Mapping):
        untold(f"quantization_config is {shown(settings)}; expected an object")
    quant = Config(config.name, settings)
    _refuse_excluded(quant)
    method = quant.get("quant_method")
    count = _METHODS.get(method) if isinstance(method, str) else None
    if count is None:
        untold(f"quant_method is {shown(method)}, which is not known here")
    weights, how = count(quant, shape, config)
    if quantize is not None and not (quantize == W8A8_DYNAMIC.lower() and how.startswith("int8")):
        untold(
            f"quantize is {shown(quantize)}, but quant_method {method} says {how}: they contradict each other"
        )
    # vLLM holds biases beside MXFP4 in bfloat16, and gpt-oss' config.json states no type.
    width = DTYPE_BYTES["bfloat16"] if method == "mxfp4" else plain_type(config)[1] if shape.biases else 0
    biases = shape.biases * width
    return weights + biases, f"quant_method {method}: {how}"


def _refuse_excluded(quant: Config) -> None:
    """Refuse a quantisation that leaves out experts: of those that stay as they were nothing is known here."""
    for key in quant.present(_EXCLUDED_KEYS):
        value = quant.get(key)
        if isinstance(value, (list, tuple)) and len(value) > _MOST_EXCLUDED:
            untold(f"{key} of quantization_config has {len(value)} names; expected at most {_MOST_EXCLUDED}")
        for entry in value if isinstance(value, (list, tuple)) else [value]:
            text = entry[:_LONGEST_NAME].lower() if isinstance(entry, str) else ""
            if re.search(r"shared|router|mtp|gate(?!_)", text):
                continue
            if "experts" in text or ("mlp" in text and ("*" in text or text.startswith("re:"))):
                untold(
                    f"{key} of quantization_config has {shown(entry)}: perhaps its experts are not quantised"
                )


def _size(quant: Config, key: str, least: int) -> int:
    value = quant.get(key)
    if type(value) is not int or value < least:
        untold(f"{key} of the quantisation is {shown(value)}; expected a whole number of at least {least}")
    return value


def _up(numbers: int, size: int) -> int:
    """Return how many pieces of a size numbers take, in Python's integers, which are never too large."""
    return -(-numbers // size)


def _fp8(quant: Config, shape: Shape, config: Config) -> tuple[int, str]:
    """One byte a number, and a float32 scale a block, or one a projection (and one for its input where static)."""
    del config
    weights = shape.numbers - shape.biases
    if not quant.has("weight_block_size"):
        is_static = quant.get("activation_scheme") == "static"
        scales = len(shape.projections) * (1 + is_static)
        return weights + scales * _SCALE, "float8 with a scale a projection"
    block = quant.get("weight_block_size")
    sizes = list(block) if isinstance(block, (list, tuple)) else []
    if [type(size) for size in sizes] != [int, int] or min(sizes) < 1:
        untold(f"weight_block_size is {shown(block)}; expected two whole numbers of at least 1")
    rows, columns = sizes
    scales = sum(_up(outputs, rows) * _up(inputs, columns) for outputs, inputs in shape.projections)
    return weights + scales * _SCALE, f"float8 with a float32 scale for {rows} x {columns}"


def _fbgemm(quant: Config, shape: Shape, config: Config) -> tuple[int, str]:
    del quant, config
    scales = sum(outputs for outputs, _ in shape.projections)
    return shape.numbers - shape.biases + scales * _SCALE, "float8 with a float32 scale a row"


def _packed(
    shape: Shape, bits: int, group: int, *, zero_points: bool, order: bool, scale_bytes: int
) -> tuple[int, str]:
    """Numbers of a few bits in words of 32, a scale for each group of inputs, perhaps zero points and an order."""
    if bits not in _BITS:
        untold(f"numbers of {bits} bits are not known here")
    total = 0
    for outputs, inputs in shape.projections:
        groups = 1 if group == -1 else _up(inputs, group)
        total += _up(inputs * bits, 32) * outputs * 4 + groups * outputs * scale_bytes
        total += groups * _up(outputs * bits, 32) * 4 * zero_points + inputs * 4 * order
    extra = " and zero points" * zero_points
    return total, f"int{bits}, scales{extra} for " + ("each row" if group == -1 else f"groups of {group}")


def _awq(quant: Config, shape: Shape, config: Config) -> tuple[int, str]:
    del config
    # Some name them w_bit and q_group_size, as AWQ's own tool does; its scales are float16.
    bits = _size(quant, "bits" if quant.has("bits") else "w_bit", 1)
    key = "group_size" if quant.has("group_size") else "q_group_size"
    group = -1 if quant.get(key) == -1 else _size(quant, key, 1)
    return _packed(shape, bits, group, zero_points=True, order=False, scale_bytes=2)


def _gptq(quant: Config, shape: Shape, config: Config) -> tuple[int, str]:
    del config
    if quant.get("dynamic"):
        untold("dynamic of the quantisation gives layers rules of their own")
    bits = _size(quant, "bits", 1)
    group = -1 if quant.get("group_size") == -1 else _size(quant, "group_size", 1)
    # Its files hold zero points also where they are symmetric; the inputs' order matters where they were sorted.
    return _packed(shape, bits, group, zero_points=True, order=quant.get("desc_act") is True, scale_bytes=2)


def _mxfp4(quant: Config, shape: Shape, config: Config) -> tuple[int, str]:
    del quant, config
    total = sum(outputs * (_up(inputs, 2) + _up(inputs, 32)) for outputs, inputs in shape.projections)
    return total, "float4 with a byte of scale for 32"


def _nvfp4(shape: Shape, *, input_scale: bool) -> tuple[int, str]:
    total = sum(
        outputs * (_up(inputs, 2) + _up(inputs, _NVFP4_GROUP)) for outputs, inputs in shape.projections
    )
    total += len(shape.projections) * _SCALE * (1 + input_scale)
    return total, f"float4 with a float8 scale for {_NVFP4_GROUP}"


def _modelopt(quant: Config, shape: Shape, config: Config) -> tuple[int, str]:
    del config
    algorithm = quant.get("quant_algo")
    if algorithm == "NVFP4":
        groups = quant.get("config_groups")
        parts = [quant.values, *(groups.values() if isinstance(groups, Mapping) else ())]
        parts += [part["weights"] for part in parts if isinstance(part, Mapping) and "weights" in part]
        for part in parts:
            size = part.get("group_size") if isinstance(part, Mapping) else None
            if size not in (None, _NVFP4_GROUP):
                untold(f"NVFP4 with groups of {shown(size)} is not known here")
        return _nvfp4(shape, input_scale=True)
    if algorithm == "FP8":
        scales = 2 * len(shape.projections)
        return (
            shape.numbers - shape.biases + scales * _SCALE,
            "float8 with a scale a projection and its input",
        )
    msg = f"quant_algo is {shown(algorithm)}, which is not known here"
    raise UntoldError(msg)


def _group_of_experts(quant: Config) -> Mapping[str, Any]:
    """Return the one group of layers that says how experts are stored."""
    groups = quant.get("config_groups")
    found = list(groups.values()) if isinstance(groups, Mapping) else []
    named = [
        group
        for group in found
        if isinstance(group, Mapping) and "expert" in str(group.get("targets")).lower()
    ]
    found = named or found
    if (
        len(found) != 1
        or not isinstance(found[0], Mapping)
        or not isinstance(found[0].get("weights"), Mapping)
    ):
        untold(
            f"config_groups of the quantisation has {counted(len(found), 'group')}; expected one that says experts'"
        )
    group: Mapping[str, Any] = found[0]
    return group


def _compressed(quant: Config, shape: Shape, config: Config) -> tuple[int, str]:
    """One group of layers of compressed-tensors: the weights' bits, type and strategy."""
    found = _group_of_experts(quant)
    weights = Config(config.name, found["weights"])
    layout = found.get("format") or quant.get("format")
    kind, bits, strategy = weights.get("type"), weights.get("num_bits"), weights.get("strategy")
    has_input = isinstance(found.get("input_activations"), Mapping)
    if layout == "pack-quantized" and kind == "int":
        group = -1 if strategy == "channel" else _size(weights, "group_size", 1)
        asymmetric = weights.get("symmetric") is False
        order = weights.get("actorder") in ("group", "dynamic")
        scale_bytes = plain_type(config)[1]
        return _packed(
            shape,
            _size(weights, "num_bits", 1),
            group,
            zero_points=asymmetric,
            order=order,
            scale_bytes=scale_bytes,
        )
    if layout == "nvfp4-pack-quantized":
        return _nvfp4(shape, input_scale=has_input)
    if layout == "mxfp4-pack-quantized":
        return _mxfp4(quant, shape, config)
    if bits == _BYTE and kind in ("int", "float") and strategy == "channel":
        scales = sum(outputs for outputs, _ in shape.projections)
        return shape.numbers - shape.biases + scales * _SCALE, f"{kind}8 with a float32 scale a row"
    if bits == _BYTE and kind == "float" and strategy == "tensor":
        inputs = found.get("input_activations")
        is_static = isinstance(inputs, Mapping) and inputs.get("dynamic") is False
        scales = len(shape.projections) * (1 + is_static)
        return shape.numbers - shape.biases + scales * _SCALE, "float8 with a scale a projection"
    if bits == _BYTE and kind == "float" and strategy == "block":
        block = Config(config.name, {"weight_block_size": weights.get("block_structure")})
        return _fp8(block, shape, config)
    msg = f"weights of {shown(bits)} bits, type {shown(kind)}, strategy {shown(strategy)} are not known here"
    raise UntoldError(msg)


_METHODS = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "awq": _awq,
    "gptq": _gptq,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed,
}
