# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Ask a server many things at a time: bounded, retried, and each answer kept as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import tenacity

from expert_maps import ExpertMapsError
from expert_maps.files import parse_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from harness.accuracy.journal import Journal

    Post = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]

_BUSY = {408, 425, 429, 500, 502, 503, 504}
_MAX_WAIT_SECONDS = 60.0
_CONNECT_SECONDS = 20.0
_MAX_ERROR = 300
# Of an answer: the log-probabilities of a long text take some megabytes.
MAX_BODY = 2**26
_PIECE = 2**16


class AskError(ExpertMapsError):
    """A question could not be answered; the message says why."""


class _BusyError(Exception):
    """The server may answer later.

    Attributes:
        retry_after: seconds that it asks to wait; None where it says nothing.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Job:
    """One thing to find out.

    Attributes:
        key: under which the answer is kept.
        run: asks for it, one request after another, and returns what is to be kept.
    """

    key: str
    run: Callable[[Post], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Limits:
    """How hard a server is asked.

    Attributes:
        concurrency: most requests in flight.
        attempts: most tries of a request.
        seconds: most seconds for one try.
        first_wait_seconds: about how long the first wait is; the next ones double, up to a minute, with jitter.
    """

    concurrency: int = 32
    attempts: int = 8
    seconds: float = 1800
    first_wait_seconds: float = 0.5


def ask_all(
    url: str,
    jobs: Sequence[Job],
    journal: Journal,
    limits: Limits,
    *,
    on_answer: Callable[[], object] = lambda: None,
    require_alive: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Return the answers in the order of the jobs; those in the journal are not asked for again.

    Args:
        url: of the server, without a slash at the end.
        jobs: what to find out; keys may occur once.
        journal: where answers come from and go to.
        limits: see `Limits`.
        on_answer: called after each answer, an old one too.
        require_alive: called before each try; it raises where trying is in vain.

    Raises:
        AskError: a request was refused, or failed in every try. Answers that had come are kept.
    """
    return asyncio.run(_ask_all(url, jobs, journal, limits, on_answer, require_alive))


async def _ask_all(
    url: str,
    jobs: Sequence[Job],
    journal: Journal,
    limits: Limits,
    on_answer: Callable[[], object],
    require_alive: Callable[[], object],
) -> list[dict[str, Any]]:
    turn = asyncio.Semaphore(limits.concurrency)
    timeout = aiohttp.ClientTimeout(total=limits.seconds, sock_connect=_CONNECT_SECONDS)
    connector = aiohttp.TCPConnector(limit=limits.concurrency)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def post(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
            return await _post(session, f"{url}{path}", body, limits, require_alive)

        async def one(job: Job) -> dict[str, Any]:
            found = journal.get(job.key)
            if found is None:
                async with turn:
                    found = await job.run(post)
                journal.add(job.key, found)
            on_answer()
            return found

        tasks = [asyncio.create_task(one(job)) for job in jobs]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _post(
    session: aiohttp.ClientSession,
    url: str,
    body: Mapping[str, Any],
    limits: Limits,
    require_alive: Callable[[], object],
) -> dict[str, Any]:
    first = limits.first_wait_seconds
    # Waits differ a little, so that requests that failed together do not return together.
    backoff = tenacity.wait_exponential(multiplier=first, max=_MAX_WAIT_SECONDS) + tenacity.wait_random(
        0, first
    )

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, _BusyError) else None
        return backoff(state) if asked is None else min(asked, _MAX_WAIT_SECONDS)

    retrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(limits.attempts),
        wait=wait,
        retry=tenacity.retry_if_exception_type(_BusyError),
        reraise=True,
    )
    try:
        async for attempt in retrying:
            with attempt:
                require_alive()
                return await _post_once(session, url, body)
    except _BusyError as error:
        msg = f"{error}, in {limits.attempts} attempts; answers so far are kept, run it again to go on"
        raise AskError(msg) from error
    raise AssertionError  # the loop returns or raises


async def _post_once(session: aiohttp.ClientSession, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    try:
        # A question goes to the server that was proven, wherever that one would send it.
        async with session.post(url, json=body, allow_redirects=False) as response:
            received = await read_body(response)
    except asyncio.TimeoutError as error:
        msg = f"{url} gave no answer in time"
        raise _BusyError(msg) from error
    except (aiohttp.ClientError, ConnectionError) as error:
        msg = f"{url}: {type(error).__name__}: {error}"
        raise _BusyError(msg) from error
    said = " ".join(received.decode(errors="replace").split())[:_MAX_ERROR]
    if response.status in _BUSY:
        msg = f"{url} answered {response.status}: {said}"
        raise _BusyError(msg, _retry_after(response.headers.get("Retry-After")))
    if response.status != 200:  # noqa: PLR2004 - HTTP's "OK"
        msg = f"{url} answered {response.status}: {said}"
        raise AskError(msg)
    try:
        answer = parse_json(received, url)
    except ExpertMapsError as error:
        msg = f"{url} answered with broken JSON: {said}"
        raise _BusyError(msg) from error
    if not isinstance(answer, dict):
        msg = f"{url} answered with {said}; expected a JSON object"
        raise AskError(msg)
    return answer


async def read_body(response: aiohttp.ClientResponse, most: int = MAX_BODY) -> bytes:
    """Return the body of an answer.

    Raises:
        AskError: it has more bytes than that.
    """
    received = bytearray()
    async for piece in response.content.iter_chunked(_PIECE):
        received += piece
        if len(received) > most:
            msg = f"{response.url} answers with more than {most:,} bytes; expected at most so many"
            raise AskError(msg)
    return bytes(received)


def _retry_after(value: str | None) -> float | None:
    """Read the header Retry-After: seconds or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
