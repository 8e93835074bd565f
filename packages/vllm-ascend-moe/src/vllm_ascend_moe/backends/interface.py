# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a platform does: its front where the command line is read, its backend in a worker.

A new one is a file with both classes, or two files where the backend imports vLLM as it is imported, and a row in
`backends.FRONTS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from vllm_ascend_moe.core.activation import log_active
from vllm_ascend_moe.eplb import EplbConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_ascend_moe.core.session import Session
    from vllm_ascend_moe.core.settings import Settings
    from vllm_ascend_moe.core.sources import PlacementSource
    from vllm_ascend_moe.hooks.table import Hook


@dataclass
class Facts:
    """What a platform tells the doctor; see `vllm_ascend_moe.doctor.Diagnosis`."""

    release: dict[str, str] | None = None
    refused: list[str] = field(default_factory=list)
    kernels: str | None = None
    notes: list[str] = field(default_factory=list)


class Front(ABC):
    """What one call of vLLM's `create_engine_config`, or the doctor, asks of a platform, before anything is loaded.

    Attributes:
        kind: the platform, in a word.
        serves: what serves there, for the doctor.
        backend: what workers serve by: a module of `vllm_ascend_moe.backends`, a dot, its class.
        records_alone: whether the load of one rank by itself can be recorded.
        splits_tokens: whether the ranks of a tensor-parallel group choose experts for different tokens.
        takes_duplicates: whether a placement may have an expert twice on a rank.
    """

    kind: ClassVar[str]
    serves: ClassVar[str]
    backend: ClassVar[str]
    records_alone: ClassVar[bool] = False
    splits_tokens: ClassVar[bool] = False
    takes_duplicates: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def is_for(platform: Any) -> bool:
        """Say whether a platform of vLLM's is this one; the first row that says so has it."""

    @abstractmethod
    def check_versions(self) -> None:
        """Refuse versions that the plugin does not know.

        Raises:
            UpstreamError: see above.
        """

    @abstractmethod
    def hooks(self) -> tuple[Hook, ...]:
        """Return every function that would be hooked or called, in all processes; the versions are known."""

    def facts(self) -> Facts:
        """Return what the doctor says of this platform; the versions are known."""
        return Facts()

    def forget_engine(self) -> None:  # noqa: B027 - most leave nothing
        """Undo what an engine before this one has left in the process."""

    def join(self, settings: Settings, engine_args: Any) -> Settings:  # noqa: ARG002 - for those that have any
        """Return the settings with what the user gave in other options of the platform's.

        Raises:
            EplbConfigError: the two do not go together.
        """
        return settings

    def settle(self, settings: Settings) -> Settings:
        """Return the settings, complete but for the placement, with what follows from the platform.

        Raises:
            EplbConfigError: the platform does not have one of them.
        """
        return settings

    @abstractmethod
    def arguments(
        self, settings: Settings, source: PlacementSource, engine_args: Any, model_config: Any
    ) -> dict[str, object]:
        """Return the arguments of vLLM's that change: name → value.

        Args:
            settings: complete.
            source: the placement to start from.
            engine_args: vLLM's, without the plugin's own options.
            model_config: vLLM's.

        Raises:
            EplbConfigError: the placement cannot be served.
        """

    def complete(self, config: Any) -> None:  # noqa: B027 - where the arguments say it all
        """Write what vLLM would have refused as an argument into the configuration that it has made."""


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


__all__ = ["Backend", "Facts", "Front"]
