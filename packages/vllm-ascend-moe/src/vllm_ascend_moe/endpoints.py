# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The record over HTTP, on vLLM's own server: vLLM's endpoint plugin ``expert_maps_record``.

The paths are those that SGLang's users know. vLLM loads such a plugin only where ``VLLM_PLUGINS`` names it, and gives it the
engine's `collective_rpc`, by which every worker is asked; the one that writes answers.

Who may ask: where the server has API keys, whoever sends one as the others do (``Authorization: Bearer …``), and nobody else;
where it has none, only this machine, by loopback, and neither through a proxy nor from a web page.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import secrets
from typing import TYPE_CHECKING, Any, ClassVar

from vllm_ascend_moe.core.activation import REPORT, SettingsError, read_resolved
from vllm_ascend_moe.core.record_control import DUMP, NO_PATH, START, STATUS, STOP

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "expert_maps_record"
PATHS = {
    "/start_expert_distribution_record": START,
    "/stop_expert_distribution_record": STOP,
    "/dump_expert_distribution_record": DUMP,
    "/status_expert_distribution_record": STATUS,
}
# By these a proxy says that it passes on what somebody else asks.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
# Of a write in another thread: how often it is asked about, and for how long.
_POLL_SECONDS, _WRITE_SECONDS = 0.1, 60.0
_BODY_BYTES = 4096


class RequestError(Exception):
    """A request that is answered with a reason.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, reason: str) -> None:
        """Keep both."""
        super().__init__(reason)
        self.status = status


def check_allowed(client: str | None, headers: Mapping[str, str], keys: list[str]) -> None:
    """Refuse who may not ask; see the module for the rule.

    Args:
        client: address of who asks, as the server has it; None where it has none (a socket of the file system).
        headers: names in lower case.
        keys: the server's.

    Raises:
        RequestError: 401 or 403.
    """
    if keys:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        found = hashlib.sha256(given.strip().encode()).digest()
        known = [secrets.compare_digest(found, hashlib.sha256(key.encode()).digest()) for key in keys]
        if scheme.lower() != "bearer" or not any(known):
            raise RequestError(401, "no API key of this server; expected Authorization: Bearer KEY")
        return
    hint = "ask on the server's own machine, by loopback, or start the server with --api-key and send that"
    if not _is_loopback(client):
        raise RequestError(403, f"asked from {client or 'an unknown address'}; expected loopback: {hint}")
    for name in (*_FORWARDED, "origin"):
        if name in headers:
            raise RequestError(403, f"asked with the header {name}, through a proxy or a web page: {hint}")


def _is_loopback(client: str | None) -> bool:
    try:
        address = ipaddress.ip_address(client or "")
    except ValueError:
        return False
    # An IPv4 address on a socket for both kinds.
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def read_fresh(body: bytes) -> bool:
    """Return ``fresh`` of a request's body, an object or nothing.

    Raises:
        RequestError: 400, the body is something else.
    """
    expected = 'expected {"fresh": true}, {"fresh": false} or no body'
    if not body.strip():
        return False
    try:
        given = json.loads(body) if len(body) <= _BODY_BYTES else None
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {expected}") from error
    if (
        not isinstance(given, dict)
        or not set(given) <= {"fresh"}
        or not isinstance(given.get("fresh", False), bool)
    ):
        raise RequestError(400, f"the body is {body[:80].decode(errors='replace')!r}; {expected}")
    return bool(given.get("fresh", False))


class RecordEndpoints:
    """What vLLM makes of the entry point; see `vllm.plugins.endpoint_plugins.interface`.

    Attributes:
        name: as ``VLLM_PLUGINS`` has it.
        required_tasks: None: for every model that is served.
    """

    name = NAME
    required_tasks: ClassVar[None] = None

    def __init__(self) -> None:
        """Know no engine yet."""
        self._engine: Any = None
        self._keys: list[str] = []
        self._unavailable: str | None = "the server is not ready"

    def attach_router(self, app: Any) -> None:
        """Add the routes; POST only: each changes what is recorded, or the file."""
        for path in PATHS:
            app.add_route(path, self.answer, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Keep the engine and the server's API keys; see vLLM's interface."""
        del state
        self._engine = engine_client
        given = getattr(args, "api_key", None) or [os.environ.get("VLLM_API_KEY")]
        self._keys = [key for key in given if key]
        self._unavailable = _why_not(engine_client)

    async def answer(self, request: Any) -> Any:
        """Answer one request, in JSON."""
        from starlette.responses import JSONResponse

        try:
            client = None if request.client is None else request.client.host
            check_allowed(
                client, {name.lower(): value for name, value in request.headers.items()}, self._keys
            )
            action = PATHS["/" + request.url.path.rstrip("/").rpartition("/")[2]]
            return JSONResponse(await self._act(action, fresh=read_fresh(await request.body())))
        except RequestError as error:
            message = {"message": str(error), "code": error.status}
            return JSONResponse({"error": message}, status_code=error.status)

    async def _act(self, action: str, *, fresh: bool) -> dict[str, Any]:
        if self._unavailable is not None:
            raise RequestError(409, self._unavailable)
        if fresh and action != START:
            raise RequestError(400, f"fresh is true with {action}; expected it with {START} only")
        found = await self._ask(action, fresh=fresh)
        until = found.pop("until", None)
        waited = 0.0
        while until is not None and found["failure"] is None and found["written_steps"] < until:
            if waited >= _WRITE_SECONDS:
                raise RequestError(
                    504, f"{found['path']} was not written within {_WRITE_SECONDS:.0f} s; ask again"
                )
            await asyncio.sleep(_POLL_SECONDS)
            waited += _POLL_SECONDS
            found = await self._ask(STATUS)
        if until is not None and found["failure"] is not None:
            raise RequestError(500, f"{found['path']} could not be written: {found['failure']}")
        if action == DUMP and not found["rows"]:
            raise RequestError(409, "nothing is recorded yet; expected a step with tokens since the start")
        return {name: found[name] for name in ("recording", "path", "rows", "unwritten_steps")}

    async def _ask(self, action: str, *, fresh: bool = False) -> dict[str, Any]:
        answers = await self._engine.collective_rpc(
            "expert_maps_record", kwargs={"action": action, "fresh": fresh, "wait": False}
        )
        for answer in answers:
            if "error" in answer:
                raise RequestError(409, answer["error"])
            if answer:
                return dict(answer)
        raise RequestError(
            409, "no worker of this server writes the record; ask the server beside expert-parallel rank 0"
        )


def _why_not(engine_client: Any) -> str | None:
    """Return why an engine's record cannot be asked for; None where it can."""
    if engine_client is None:
        return "this server has no engine"
    try:
        activation = read_resolved(engine_client.vllm_config)
    except SettingsError as error:
        return str(error)
    if activation.settings is None:
        return f"vllm-ascend-moe is inactive: {activation.reason}"
    if activation.settings.record_path is None:
        return NO_PATH
    extension = engine_client.vllm_config.parallel_config.worker_extension_cls
    if extension != REPORT:
        return f"worker_extension_cls is {extension}; expected the plugin's, which has what is asked for: leave it out"
    return None


__all__ = ["NAME", "PATHS", "RecordEndpoints", "RequestError", "check_allowed", "read_fresh"]
