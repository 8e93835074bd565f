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
OK = 200
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

    async def ask() -> list[dict[str, Any]]:
        turn = asyncio.Semaphore(limits.concurrency)
        timeout = aiohttp.ClientTimeout(total=limits.seconds, sock_connect=_CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(limit=limits.concurrency)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

            @_retrying(limits)
            async def post(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
                require_alive()
                return await _post(session, f"{url}{path}", body)

            async def one(job: Job) -> dict[str, Any]:
                found = journal.get(job.key)
                if found is None:
                    async with turn:
                        found = await job.run(post)
                    journal.add(job.key, found)
                on_answer()
                return found

            return await _all_or_none([asyncio.create_task(one(job)) for job in jobs])

    try:
        return asyncio.run(ask())
    except _BusyError as error:
        msg = f"{error}, in {limits.attempts} attempts; answers so far are kept, run it again to go on"
        raise AskError(msg) from error


async def _all_or_none(tasks: list[asyncio.Task[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Wait for all; with the first error the others are ended."""
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _retrying(limits: Limits) -> Callable[[Post], Post]:
    first = limits.first_wait_seconds
    # Waits differ a little, so that requests that failed together do not return together.
    backoff = tenacity.wait_exponential(multiplier=first, max=_MAX_WAIT_SECONDS) + tenacity.wait_random(
        0, first
    )

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, _BusyError) else None
        return backoff(state) if asked is None else min(asked, _MAX_WAIT_SECONDS)

    return tenacity.retry(
        stop=tenacity.stop_after_attempt(limits.attempts),
        wait=wait,
        retry=tenacity.retry_if_exception_type(_BusyError),
        reraise=True,
    )


async def _post(session: aiohttp.ClientSession, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Post once, and return the JSON object of the answer."""
    try:
        answer = await exchange(session, url, body)
    except asyncio.TimeoutError as error:
        msg = f"{url} gave no answer in time"
        raise _BusyError(msg) from error
    except (aiohttp.ClientError, ConnectionError) as error:
        msg = f"{url}: {type(error).__name__}: {error}"
        raise _BusyError(msg) from error
    if answer.status != OK:
        msg = f"{url} answered {answer.status}: {answer.said}"
        raise _BusyError(msg, answer.retry_after) if answer.status in _BUSY else AskError(msg)
    try:
        found = parse_json(answer.content, url)
    except ExpertMapsError as error:
        msg = f"{url} answered with broken JSON: {answer.said}"
        raise _BusyError(msg) from error
    if not isinstance(found, dict):
        msg = f"{url} answered with {answer.said}; expected a JSON object"
        raise AskError(msg)
    return found


@dataclass(frozen=True)
class Answered:
    """What a server said.

    Attributes:
        status: HTTP's.
        content: of at most `MAX_BODY` bytes.
        retry_after: seconds that it asks to wait; None where it says nothing.
    """

    status: int
    content: bytes
    retry_after: float | None

    @property
    def said(self) -> str:
        """The beginning of it, as a message may show it."""
        return " ".join(self.content[: 4 * _MAX_ERROR].decode(errors="replace").split())[:_MAX_ERROR]


async def exchange(session: aiohttp.ClientSession, url: str, body: object = None) -> Answered:
    """Get, or with a body post it as JSON; to the server that was proven, wherever that one would send it.

    Raises:
        AskError: the answer has too many bytes.
    """
    method, received = "GET" if body is None else "POST", bytearray()
    async with session.request(method, url, json=body, allow_redirects=False) as response:
        async for piece in response.content.iter_chunked(_PIECE):
            received += piece
            if len(received) > MAX_BODY:
                msg = f"{url} answers with more than {MAX_BODY:,} bytes; expected at most so many"
                raise AskError(msg)
        return Answered(response.status, bytes(received), _retry_after(response.headers.get("Retry-After")))


def _retry_after(value: str | None) -> float | None:
    """Read the header Retry-After: seconds or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
