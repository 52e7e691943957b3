"""Where a remote model's traces run: NDIF, or another server that speaks its protocol.

Requests are nnsight's own; they are sent and waited for here, since nnsight's client waits for ever on a server that
falls silent, and loads results as pickles that may execute. Here every wait has a deadline, what failed on the way is
tried again, and results are tensors in plain containers or refused.
"""

import io
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pickle import UnpicklingError
from queue import Empty, SimpleQueue
from threading import Thread, local
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx
import nnsight
import torch
import zstandard
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.ndif import pull_env
from nnsight.schema.config import CONFIG
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
AGAIN = {408, 425, 429, 500, 502, 503, 504}  # answers after which the same request may succeed
FIRST, LONGEST = 0.5, 30.0  # seconds between two attempts: at first, and at most
ASKED = 0.05, 2.0  # seconds between two looks at a job: at first, and at most
MOST = 64  # times the bytes of a result that it may be unpacked to: activations hardly shrink
T = TypeVar("T")


class RemoteFailed(RuntimeError):
    """A server did not answer in time, or not with what was asked for."""


class Server:
    """A server and how long it is waited for. Its key is NDIF_API_KEY of the environment, and is written nowhere.

    Attributes:
        said: what it last said of a job: "QUEUED", "RUNNING" ...
        sent, received: bytes so far.
        requests: answered so far, in `seconds` altogether.
    """

    def __init__(self, host: str | None = None, deadline: float = 300.0, attempts: int = 4):
        """
        Args:
            host: an address; by default ("ndif") NDIF_HOST of the environment, or NDIF itself.
            deadline: seconds for one request, from sending it to its result; then it is sent again.
            attempts: how often in all.

        Raises:
            ValueError: a host without https that is not this machine: what it sends could be anybody's; a deadline or
                attempts that leave no time.
        """
        if deadline <= 0 or attempts < 1:
            raise ValueError(f"deadline={deadline} must be above 0 seconds, and attempts={attempts} at least 1.")
        self.host = ((None if host == "ndif" else host) or os.environ.get("NDIF_HOST") or CONFIG.API.HOST).rstrip("/")
        _trusted(self.host)
        self.deadline, self.attempts = deadline, attempts
        self.sent = self.received = self.requests = 0
        self.seconds, self.said = 0.0, ""
        self._here = local()
        nnsight.register("sae_lab")  # what is used of it travels by its source: no server has it installed

    def __repr__(self) -> str:
        return f"Server({self.host}: {self.requests:,} requests, {self.received / 1e6:,.1f} MB received)"

    @property
    def memory(self) -> "Memory | None":
        """Of what this thread asks it, where somebody keeps that; others' requests are none of it."""
        return getattr(self._here, "memory", None)

    @memory.setter
    def memory(self, kept: "Memory | None") -> None:
        self._here.memory = kept

    def backend(self, key: str) -> "Backend":
        """What a trace of the model of this key is given."""
        return Backend(self, key)

    def answer(self, request: RequestModel, blob: bytes) -> dict[str, Any]:
        """What a trace saved.

        Raises:
            RemoteFailed: no answer after all attempts, a refusal, or a trace that failed there.
        """
        began, before = time.monotonic(), self.memory.next() if self.memory else ""
        job, key = _Job(before, recalled=bool(before)), _key()
        try:
            found = self._persist(lambda: self._once(job, key, request, blob, time.monotonic() + self.deadline))
        except _Again as error:
            raise RemoteFailed(
                f"{self.host} gave no answer in {time.monotonic() - began:.0f} s, {self.attempts} attempts of up to "
                f"{self.deadline:g} s; the last one: {_hidden(str(error), key)}. Try again later, or with more "
                "attempts or a longer deadline (Server(...)); what is in a cache stays there."
            ) from None
        except RemoteFailed as error:
            raise RemoteFailed(_hidden(str(error), key)) from None
        self.requests += 1
        self.seconds += time.monotonic() - began
        return found

    def _once(self, job: "_Job", key: str, request: RequestModel, blob: bytes, end: float) -> dict[str, Any]:
        """One attempt. A job that the server still knows is waited for, not sent again; what fails once it is done is
        fetched again: it is computed, and paid for, once."""
        with self._client(self.host, {"ndif-api-key": key} if key else {}) as client:
            if job.recalled:
                reply = _within(end, partial(client.get, f"{self.host}/response/{job.id}", timeout=_left(end)))
                job.recalled, job.known = False, reply.status_code != 404
            if not job.known:
                job.id, job.known = self._submitted(client, request, blob, end), True
                if self.memory:
                    self.memory.note(job.id)
            said = self._persist(lambda: self._done(client, job, end), end)
        return self._persist(lambda: _opened(self._fetched(str(said.data or ""), end)), end)

    @staticmethod
    def _client(address: str, headers: dict[str, str]) -> httpx.Client:
        """Nothing between this machine and itself: what an environment calls a proxy would see the key."""
        return httpx.Client(headers=headers, trust_env=urlsplit(address).scheme == "https")

    def _submitted(self, client: httpx.Client, request: RequestModel, blob: bytes, end: float) -> str:
        about = {
            "nnsight-version": nnsight.__version__,
            "python-version": sys.version,
            "ndif-timestamp": str(time.time()),
        }
        files = {"blob": ("request", blob, "application/octet-stream")}
        address, form = f"{self.host}/request", {"data": request.metadata()}
        send = partial(client.post, address, data=form, files=files, headers=about, timeout=_left(end))
        reply = _checked(_within(end, send))
        self.sent += len(blob)
        return _said(reply).id

    def _done(self, client: httpx.Client, job: "_Job", end: float) -> ResponseModel:
        """A job's last word.

        Raises:
            RemoteFailed: it failed there.
        """
        pause, longest = ASKED
        while True:
            ask = partial(client.get, f"{self.host}/response/{job.id}", timeout=_left(end))
            job.known = True  # while no answer comes: to ask again costs nothing, to send it again is paid for
            reply = _within(end, ask)
            job.known = reply.status_code != 404  # not yet, or no more
            if job.known:
                said = _said(_checked(reply))
                self.said = said.status.name
                if said.status == Status.ERROR:
                    last = (said.description or "").strip().rpartition("\n")[2]
                    raise RemoteFailed(f"The trace failed on {self.host}: {last}\n\n{said.description}")
                if said.status == Status.COMPLETED:
                    return said
            time.sleep(min(pause, _left(end)))
            pause = min(1.5 * pause, longest)

    def _fetched(self, address: str, end: float) -> bytes:
        if not address:
            raise _Again("the job is done and there is no result")
        _trusted(address, here=urlsplit(self.host).hostname in LOOPBACK)
        with self._client(address, {}) as client:
            reply = _within(end, partial(client.get, address, timeout=_left(end)))
        if not reply.is_success:
            raise _Again(f"{reply.status_code} instead of the result")
        self.received += len(reply.content)
        return reply.content

    def _persist(self, what: Callable[[], T], end: float | None = None) -> T:
        """What comes of it, tried again where that may help: until the deadline, or as often as there are attempts.

        Raises:
            _Again: it never did.
        """
        for attempt in count():
            try:
                return what()
            except (httpx.LocalProtocolError, httpx.UnsupportedProtocol):
                raise
            except (httpx.HTTPError, httpx.InvalidURL, _Again) as error:
                pause = max(min(FIRST * 2**attempt, LONGEST), min(getattr(error, "wait", 0.0), self.deadline))
                late = attempt + 1 >= self.attempts if end is None else time.monotonic() + pause > end
                if late:
                    raise _Again(str(error) or type(error).__name__) from None
            time.sleep(pause)
        raise AssertionError  # it counts for ever


class Backend(RemoteBackend):
    """Sends one trace and brings back what it saved."""

    def __init__(self, server: Server, key: str):
        super().__init__(key, host=server.host, api_key="")
        self.server, self.display.enabled = server, False

    def __call__(self, tracer: Any = None) -> Any:
        pull_env()
        request = RequestModel(model_key=self.model_key, compress=True, env=self.env)
        found = self.server.answer(request, RequestModel.serialize(tracer, True))
        self._push(found, tracer)
        return found


@dataclass
class _Job:
    """What a server was asked to do, whether it knows of it, and whether it was asked before this process began."""

    id: str = ""
    known: bool = False
    recalled: bool = False


class Memory(Protocol):
    """Ids of jobs in the order in which they are asked for, kept beyond this process."""

    def next(self) -> str: ...

    def note(self, job: str) -> None: ...


class _Again(Exception):
    """What went wrong may go right the next time, after so many seconds at the earliest."""

    def __init__(self, said: str, wait: float = 0.0):
        super().__init__(said)
        self.wait = wait


def _key() -> str:
    """Raises:
    ValueError: if it is no key; it is not shown.
    """
    key = os.environ.get("NDIF_API_KEY", "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise ValueError("NDIF_API_KEY holds characters that no key has: set it again.")
    return key


def _hidden(said: str, key: str) -> str:
    return said.replace(key, "***") if key else said


def _left(end: float) -> float:
    """Seconds until the deadline."""
    left = end - time.monotonic()
    if left <= 0:
        raise _Again("the deadline passed")
    return left


def _within(end: float, what: Callable[[], T]) -> T:
    """What comes of it before the deadline: a server that drips byte after byte passes every timeout between bytes."""
    found: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            found.put((what(), None))
        except BaseException as error:
            found.put((None, error))

    Thread(target=work, daemon=True).start()
    try:
        value, failed = found.get(timeout=_left(end))
    except Empty:
        raise _Again("the deadline passed") from None
    if failed:
        raise failed
    return value


def _checked(reply: httpx.Response) -> httpx.Response:
    if reply.is_success:
        return reply
    try:
        said = reply.json()
        said = said.get("detail", said) if isinstance(said, dict) else said
    except ValueError:
        said = reply.text[:500]
    if reply.status_code in AGAIN:
        asked = reply.headers.get("retry-after", "")
        raise _Again(f"{reply.status_code} {said}", float(asked) if asked.isdecimal() else 0.0)
    way = " Set NDIF_API_KEY to a valid key." if reply.status_code in (401, 403) else ""
    raise RemoteFailed(f"{reply.url.host} refused: {reply.status_code} {said}{way}")


def _said(reply: httpx.Response) -> ResponseModel:
    try:
        return ResponseModel.model_validate_json(reply.text)
    except ValueError as error:
        raise _Again(f"its answer is not of NDIF's protocol: {reply.text[:80]!r}") from error


def _opened(data: bytes) -> dict[str, Any]:
    """Tensors in plain containers; a pickle that names anything else is not opened."""
    try:
        plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read(MOST * len(data) + 2**24)
        found = torch.load(io.BytesIO(plain), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise RemoteFailed("The result holds something else than tensors, which could execute: refused.") from error
    except Exception as error:
        raise _Again(f"the result is no whole file of tensors ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise _Again(f"the result is a {type(found).__name__}, not what a trace saves")
    return found


def _trusted(address: str, here: bool = True) -> None:
    parts = urlsplit(address)
    if parts.scheme != "https" and not (here and parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError(f"{address!r} is neither https nor this machine: results from there could be anybody's.")
