# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A worker extension that counts, beside the plugin and without it, which experts vLLM's routers choose."""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm_ascend_moe.report import WorkerReport


class Observer(WorkerReport):
    """Counts logical ids where vLLM hands them out, before anything maps them."""

    def observe_routes(self) -> int:
        """Start to count; returns the number of layers that are watched."""
        model = self.model_runner.model  # type: ignore[attr-defined] # of the worker it is mixed into
        runners = [module for module in model.modules() if hasattr(module, "routed_experts")]
        routers = [runner.router for runner in runners if hasattr(runner, "router")]
        experts = int(self.model_config.get_num_experts())  # type: ignore[attr-defined]
        self._routes = np.zeros((len(routers), experts), dtype=np.int64)
        for layer, router in enumerate(routers):
            router.set_capture_fn(lambda ids, layer=layer: self._count(layer, ids))
        return len(routers)

    def _count(self, layer: int, ids: Any) -> None:  # noqa: ANN401 - torch's
        self._routes[layer] += np.bincount(ids.flatten().numpy(), minlength=self._routes.shape[1])

    def observed_routes(self) -> list[list[int]]:
        """Return the counts since `observe_routes`: [L, E]."""
        return [[int(count) for count in row] for row in self._routes]
