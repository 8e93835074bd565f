# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import importlib
import importlib.metadata
import logging
import re
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fake_vllm
import pytest

from expert_maps import ExpertMapsError
from vllm_ascend_moe import backends, releases
from vllm_ascend_moe.core import activation, session
from vllm_ascend_moe.hooks import entry, table
from vllm_ascend_moe.hooks.table import Hook
from vllm_ascend_moe.hooks.wrapping import (
    UpstreamError,
    call,
    check_hooks,
    check_versions,
    original,
    problems,
    wrap,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FUNCTION = Hook("vllm.somewhere", "function", ("first", "second"))
METHOD = Hook("vllm.somewhere.deep", "Class.method", ("self", "value"))


def current(hook: Hook) -> Any:  # noqa: ANN401 - a function
    owner: Any = importlib.import_module(hook.module)
    for part in hook.name.split("."):
        owner = getattr(owner, part)
    return owner


def passing(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM's
    return "around", function(*args, **kwargs)


# Problems


def test_a_vllm_with_every_function_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = (*fake_vllm.HOOKS, *table.beside(releases.NEWEST))
    fake_vllm.install(monkeypatch, everything)
    assert not list(problems(everything))
    check_hooks(everything)


@pytest.mark.parametrize("hook", fake_vllm.HOOKS, ids=str)
def test_every_hook_is_looked_at_by_name_and_parameter(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [other for other in fake_vllm.HOOKS if other != hook]
    fake_vllm.install(monkeypatch, others)
    (missing,) = problems(fake_vllm.HOOKS)
    assert missing.startswith(f"{hook.module}.{hook.name} is not there (")
    if hook.parameters:
        fake_vllm.install(monkeypatch)
        fake_vllm.replace(
            monkeypatch, hook, fake_vllm.function("renamed", (*hook.parameters[:-1], "renamed"))
        )
        (wrong,) = problems(fake_vllm.HOOKS)
        found = ", ".join([*hook.parameters[:-1], "renamed"])
        assert wrong == (
            f"{hook.module}.{hook.name} has the parameters ({found}); "
            f"expected ({', '.join(hook.parameters)}) among them"
        )


@pytest.mark.parametrize(
    ("parameters", "fits"),
    [
        (("first", "second"), True),
        (("zeroth", "first", "between", "second", "third"), True),
        (("first",), False),
        (("second", "first"), False),
        ((), False),
    ],
)
def test_parameters_must_be_there_in_order(
    parameters: tuple[str, ...], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_vllm.install(monkeypatch, [])
    fake_vllm.replace(monkeypatch, FUNCTION, fake_vllm.function("function", parameters))
    assert (list(problems([FUNCTION])) == []) is fits


def test_what_is_missing_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch, [METHOD])
    (no_module,) = problems([Hook("vllm.nowhere", "f", ())])
    assert no_module.startswith("vllm.nowhere.f is not there (ModuleNotFoundError: ")
    (no_class,) = problems([Hook("vllm.somewhere.deep", "Other.method", ())])
    assert no_class.startswith("vllm.somewhere.deep.Other.method is not there (AttributeError: ")
    (no_method,) = problems([Hook("vllm.somewhere.deep", "Class.other", ())])
    assert no_method.startswith("vllm.somewhere.deep.Class.other is not there (AttributeError: ")


def test_what_is_no_function_is_a_problem_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch, [])
    fake_vllm.replace(monkeypatch, FUNCTION, 3)
    (found,) = problems([FUNCTION])
    assert found.startswith("vllm.somewhere.function ")


def test_a_function_that_shows_no_parameters_is_a_problem_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        msg = "no signature found"
        raise ValueError(msg)

    fake_vllm.install(monkeypatch, [FUNCTION])
    monkeypatch.setattr("inspect.signature", refuse)
    (found,) = problems([FUNCTION])
    assert found == "vllm.somewhere.function is not there (ValueError: no signature found)"


def test_every_misfit_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch, [METHOD], version="0.31.0")
    fake_vllm.replace(monkeypatch, METHOD, fake_vllm.function("method", ("self",)))
    with pytest.raises(UpstreamError) as error:
        check_hooks([FUNCTION, METHOD])
    text = str(error.value)
    assert text.startswith("vLLM 0.31.0 is not as vllm-ascend-moe expects (supported: ")
    assert "vllm.somewhere.function is not there" in text
    assert (
        "vllm.somewhere.deep.Class.method has the parameters (self); expected (self, value) among them"
        in text
    )
    assert issubclass(UpstreamError, ExpertMapsError)


# Wrapping


@pytest.mark.parametrize("hook", [FUNCTION, METHOD])
def test_a_function_is_put_around_vllms(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch, [hook])
    before = current(hook)
    assert original(hook) is before
    wrap(hook, passing)
    after = current(hook)
    assert after is not before
    assert after(1, second=2) == ("around", (hook.name, (1,), {"second": 2}))
    # It still looks like vLLM's, and vLLM's own is at hand.
    assert after.__name__ == before.__name__
    assert not list(problems([hook]))
    assert original(hook) is before
    assert call(hook, 1, 2) == (hook.name, (1, 2), {})


def test_a_method_has_its_self(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch, [METHOD])
    wrap(METHOD, passing)
    made = current(Hook(METHOD.module, "Class", ()))()
    assert made.method(7) == ("around", ("Class.method", (made, 7), {}))


@pytest.mark.parametrize("hook", [FUNCTION, METHOD])
def test_a_second_time_replaces_the_first(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch, [hook])
    before = current(hook)
    for number in range(3):
        wrap(hook, lambda function, *args, number=number: (number, function(*args)))
        assert original(hook) is before
        # One layer, however often.
        assert current(hook)(1, 2) == (number, (hook.name, (1, 2), {}))
        assert not list(problems([hook]))


def test_one_hook_does_not_touch_another(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch, [FUNCTION, METHOD])
    before = current(METHOD)
    wrap(FUNCTION, passing)
    assert current(METHOD) is before


# Versions


@pytest.mark.parametrize(
    "version", ["0.30.0", "0.30.2.post1", "0.31.0rc1", "0.32.0+cpu", "0.33.0", "0.33.9.dev7+gabcdef"]
)
def test_supported_versions_pass(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch, [], version=version)
    check_versions(ascend=False)


@pytest.mark.parametrize("version", ["0.29.9", "0.30.0rc1", "0.34.0", "0.34.0rc1+cpu", "1.0", "dev", ""])
def test_other_versions_are_refused_with_what_is_supported(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_vllm.install(monkeypatch, [], version=version)
    with pytest.raises(UpstreamError) as error:
        check_versions(ascend=False)
    text = str(error.value)
    assert text.startswith(f"found vLLM {version}; vllm-ascend-moe supports ")
    assert ">=0.30" in text
    assert "<0.34" in text
    assert "leave out expert_maps and VLLM_ASCEND_MOE_ENABLED" in text


def test_no_vllm_is_refused_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.without_vllm(monkeypatch)
    with pytest.raises(UpstreamError, match="found vLLM None; vllm-ascend-moe supports"):
        check_versions(ascend=False)


@pytest.mark.parametrize(
    ("version", "vllm", "fits"),
    [
        *((release.vllm_ascend, f"{release.vllm}+empty", True) for release in releases.RELEASES),
        ("0.23.0+cpu", "0.23.0", True),
        ("0.23.0", "0.22.1", False),
        ("0.23.0rc1", "0.23.0", False),
        ("0.17.0", "0.17.0", False),
        ("0.30.0rc3", "0.30.0", False),
        ("0.30.0", "0.30.0", False),
        ("dev", "0.30.0", False),
        ("0.30.0rc2", "dev", False),
        (None, "0.30.0", False),
    ],
)
def test_beside_vllm_ascend_the_pair_counts(
    version: str | None, vllm: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(name: str) -> str:
        if name != "vllm-ascend" or version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    fake_vllm.install(monkeypatch, [], version=vllm)
    monkeypatch.setattr(importlib.metadata, "version", installed)
    if fits:
        check_versions(ascend=True)
        return
    with pytest.raises(UpstreamError) as error:
        check_versions(ascend=True)
    text = str(error.value)
    assert text.startswith(
        f"found vllm-ascend {version} with vLLM {vllm}; expected a pair that the plugin knows"
    )
    assert all(f"{release.vllm_ascend} with {release.vllm}" in text for release in releases.RELEASES)
    assert text.endswith("or leave out expert_maps and VLLM_ASCEND_MOE_ENABLED to serve without the plugin")


# Platforms


@pytest.mark.parametrize(
    ("platform", "kind"),
    [("cpu", "cpu"), ("cuda", "gpu"), ("rocm", "gpu"), ("xpu", "gpu"), ("ascend", "ascend")],
)
def test_the_platform_decides_the_way_to_serve(
    platform: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_vllm.install(monkeypatch, [], platform=platform)
    assert backends.front().kind == kind


def test_an_unknown_platform_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch, [], platform="tpu")
    with pytest.raises(
        UpstreamError, match="the platform is tpu; expected a CPU, CUDA, ROCm or XPU, or an NPU"
    ):
        backends.front()


# Watching


@pytest.fixture(autouse=True)
def first_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "said_in", set())
    monkeypatch.delenv("VLLM_ASCEND_MOE_ENABLED", raising=False)


def test_watching_puts_one_layer_around_what_makes_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)
    before = {hook: current(hook) for hook in fake_vllm.HOOKS}
    for _ in range(2):
        entry.watch()
        changed = {hook for hook in fake_vllm.HOOKS if current(hook) is not before[hook]}
        assert changed == set(table.WATCHED)
        assert all(original(hook) is before[hook] for hook in fake_vllm.HOOKS)


def test_a_worker_does_not_load_the_engines_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = (table.EXECUTOR_INIT, table.WORKER_INIT)
    fake_vllm.install(monkeypatch, seen)
    before = {hook: current(hook) for hook in seen}
    entry.watch()
    assert table.CREATE_ENGINE_CONFIG.module not in sys.modules
    assert all(current(hook) is not before[hook] for hook in seen)


@pytest.mark.parametrize("missing", table.WATCHED, ids=str)
def test_where_it_cannot_watch_it_says_so_and_changes_nothing(
    missing: Hook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_vllm.install(monkeypatch)
    # The module is there, without the function.
    fake_vllm.replace(monkeypatch, missing, fake_vllm.function("other", ("other",)))
    before = {hook: current(hook) for hook in fake_vllm.HOOKS}
    with caplog.at_level(logging.INFO, logger="vllm.ascend_moe"):
        entry.watch()
    (message,) = caplog.messages
    assert caplog.records[0].levelno == logging.WARNING
    assert re.search(f"vllm-ascend-moe inactive: .*{re.escape(str(missing))}", message)
    assert all(current(hook) is before[hook] for hook in fake_vllm.HOOKS)


def test_an_inactive_plugin_passes_everything_on_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gc.collect()  # engines of other tests, which may await it
    fake_vllm.install(monkeypatch)
    before = {hook: current(hook) for hook in fake_vllm.HOOKS}
    entry.watch()
    arguments = SimpleNamespace(additional_config={"other": 1})
    parallel = SimpleNamespace(worker_extension_cls="")
    config = SimpleNamespace(additional_config={"other": 1}, parallel_config=parallel)
    with caplog.at_level(logging.INFO, logger="vllm.ascend_moe"):
        for _ in range(2):
            for hook, given in (
                (table.CREATE_ENGINE_CONFIG, (arguments, 1)),
                (table.CREATE_MODEL_CONFIG, (arguments,)),
                (table.EXECUTOR_INIT, ("self", config)),
                (table.WORKER_INIT, ("self", config, 3)),
            ):
                assert current(hook)(*given, more=2) == (hook.name, given, {"more": 2})
    (message,) = caplog.messages
    assert "inactive: expert_maps is not in the additional config" in message
    # Nothing more was put in place, and nothing was changed.
    watched = set(table.WATCHED)
    assert all(current(hook) is before[hook] for hook in fake_vllm.HOOKS if hook not in watched)
    assert vars(arguments) == {"additional_config": {"other": 1}}
    assert vars(config) == {"additional_config": {"other": 1}, "parallel_config": parallel}
    assert vars(parallel) == {"worker_extension_cls": ""}
    assert not session.has_sessions()


@pytest.mark.parametrize(
    ("version", "platform", "message"),
    [("0.29.0", "cpu", "found vLLM 0.29.0; "), ("0.32.0", "tpu", "the platform is tpu; ")],
)
def test_an_active_plugin_refuses_a_vllm_that_it_does_not_know(
    version: str, platform: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_vllm.install(monkeypatch, version=version, platform=platform)
    entry.watch()
    arguments = SimpleNamespace(additional_config={"expert_maps": {}})
    with pytest.raises(UpstreamError, match=message):
        current(table.CREATE_ENGINE_CONFIG)(arguments)
