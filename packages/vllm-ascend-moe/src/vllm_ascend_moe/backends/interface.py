# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a platform's backend does in a worker. A new one is a class in a file of its own, and a row in `backends.find`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.core.activation import log_active
from vllm_ascend_moe.eplb import EplbConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_ascend_moe.core.session import Session


class Backend(ABC):
    """One engine's experts on one platform.

    Attributes:
        session: the engine's.
    """

    def __init__(self, session: Session) -> None:
        """Know nothing of a model yet."""
        self.session = session

    @abstractmethod
    def install(self) -> None:
        """Check what is hooked, and put the hooks in place.

        Raises:
            UpstreamError: a version or a function does not fit; nothing is installed.
        """

    @abstractmethod
    def make_model(self, make: Callable[[], Any], model_config: Any) -> Any:
        """Let a model be made, and check it before its weights are read, which may take minutes.

        Args:
            make: makes it.
            model_config: vLLM's, of this model: the engine's or a draft's.

        Raises:
            EplbConfigError: the placement is not for it.
            DisagreementError: ranks have different placements.
        """

    @abstractmethod
    def finish_loading(self) -> None:
        """Compare what was loaded with the placement, and see that the hooks were called.

        Raises:
            UpstreamError: a hook was never called, so that the engine goes by another way than the plugin knows.
            DisagreementError: a slot does not hold its expert.
        """

    @property
    @abstractmethod
    def is_placed(self) -> bool:
        """Whether experts stand where the plugin has put them."""

    @abstractmethod
    def report(self, *, checksums: bool) -> dict[str, Any]:
        """Return what is served now: plain values, nothing before there is a placement.

        Args:
            checksums: also read this rank's slots.
        """

    # New weights for a model that serves, see `vllm_ascend_moe.backends.reloading`.

    def begin_reload(self, name: str) -> None:
        """Let new weights be loaded in the layout of the loader; by default there are none once experts are placed.

        Args:
            name: of the function that loads them or begins to.

        Raises:
            EplbConfigError: they cannot be loaded here.
        """
        if self.is_placed:
            msg = (
                f"{name} was called while experts stand where the plugin has put them; expected no new weights: vLLM "
                "loads them in a layout of its own. Start the server again"
            )
            raise EplbConfigError(msg)

    def end_reload(self) -> None:  # noqa: B027 - where nothing can be loaded nothing follows
        """Serve the new weights under the placement.

        Raises:
            DisagreementError: a slot does not hold its expert.
        """

    def abort_reload(self) -> None:  # noqa: B027 - as above
        """Go on after what loads has failed."""

    def say_active(self, placement: str, digest: str) -> None:
        """Log what this worker serves."""
        ranks = self.session.ranks
        where = f"worker (expert-parallel rank {ranks.ep_rank} of {ranks.ep_size})"
        log_active(where, self.session.config.device_config.device_type, placement, digest)


__all__ = ["Backend"]
