# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A rank that fails says which it is and what it was doing, and fails all the same."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from vllm_ascend_moe.backends import eplb_hooks, worker
from vllm_ascend_moe.core import session as sessions
from vllm_ascend_moe.core.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable


class Failing:
    """A session of rank 1 of 4, with a backend whose work fails."""

    naming: Any = Session.naming
    settings = SimpleNamespace(dynamic=True)
    may_rearrange = True
    rearranging = loading = staticmethod(nullcontext)
    start_metrics = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.ranks = SimpleNamespace(ep_rank=1, ep_size=4)
        self.session = self.backend = self

    def fail(self, *_: object, **__: object) -> None:
        msg = "connection\nclosed by peer"
        raise OSError(msg)

    record = fail


def load(failing: Any) -> None:  # noqa: ANN401 - in place of a session
    worker._load(failing, failing.fail)


def move(failing: Any) -> None:  # noqa: ANN401
    eplb_hooks._around_rearrange(failing.fail, owner(failing))


def record(failing: Any) -> None:  # noqa: ANN401
    eplb_hooks._around_step(failing.fail, owner(failing))


def owner(session: object) -> SimpleNamespace:
    return SimpleNamespace(**{sessions._ATTRIBUTE: session})


@pytest.mark.parametrize(
    ("work", "phase"), [(load, "loading"), (move, "moving experts"), (record, "recording load")]
)
def test_rank_and_phase_are_said_and_the_error_is_raised(
    work: Callable[[Any], None], phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(OSError, match="connection\nclosed by peer"):
        work(Failing())
    assert caplog.messages == [f"rank 1 of 4 failed while {phase}: OSError: connection closed by peer"]


def test_what_goes_well_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with Failing().naming("loading"):
        pass
    assert caplog.messages == []
