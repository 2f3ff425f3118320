"""A load generator: kept-alive connections on one event loop, HTTP/1.1 by hand, so that it costs
little beside what it measures. Latencies count from when a request was due, not from when there
was time to send it. `WARM_UP` requests, one after the other, go before those at a rate.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

from arrivals import WARM_UP, send


@dataclass
class Answers:
    """What came back: seconds from due to done, statuses, and bodies of the good ones.

    Of the requests that warm up only the bodies are held. `cpu_seconds` are those of the server's
    process, where they were counted.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    def add(self, more: "Answers") -> None:
        """Add those of a later turn."""
        self.seconds += more.seconds
        self.statuses += more.statuses
        self.bodies += more.bodies
        self.wall_seconds += more.wall_seconds
        self.cpu_seconds += more.cpu_seconds

    @property
    def per_second(self) -> float:
        """Good answers a second."""
        return sum(200 <= status < 300 for status in self.statuses) / self.wall_seconds

    def percentile_ms(self, percent: float) -> float:
        """Milliseconds within which so many per cent were answered."""
        return float(np.percentile(self.seconds, percent)) * 1e3 if self.seconds else float("nan")


class Connection:
    """One kept-alive connection."""

    def __init__(self, address: str) -> None:
        self.host, self.port = urlsplit(address).hostname, urlsplit(address).port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, headers: str) -> tuple[int, bytes]:
        """Status and body; 0 where the connection broke."""
        try:
            if self.streams is None:
                self.streams = await asyncio.open_connection(self.host, self.port)
            reader, writer = self.streams
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status = int(head.split(" ", 2)[1])
            length = head.partition("content-length:")[2].partition("\r\n")[0].strip()
            return status, await reader.readexactly(int(length)) if length else b""
        except (OSError, asyncio.IncompleteReadError):
            self.streams = None
            return 0, b""


Request = Callable[[int], tuple[str, bytes]]


async def flood(
    address: str, request: Request, *, connections: int, seconds: float, headers: str = ""
) -> Answers:
    """As many requests as the connections carry: each sends its next when the last is answered."""
    answers, number, end = Answers(), iter(range(10**9)), time.perf_counter() + seconds

    async def one() -> None:
        connection = Connection(address)
        while (started := time.perf_counter()) < end:
            status, body = await connection.post(*request(next(number)), headers)
            _note(answers, started, status, body)

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(connections)))
    answers.wall_seconds = time.perf_counter() - started
    return answers


async def at_rate(
    address: str,
    request: Request,
    *,
    rate: float,
    seconds: float,
    seed: int = 0,
    headers: str = "",
) -> Answers:
    """Requests at random times, so many a second, whether or not those before are answered."""
    answers = Answers()
    idle = [Connection(address)]
    for number in range(WARM_UP):
        status, body = await idle[0].post(*request(number), headers)
        if 200 <= status < 300:
            answers.bodies.append(body)

    async def one(number: int, due: float) -> None:
        connection = idle.pop() if idle else Connection(address)
        status, body = await connection.post(*request(number), headers)
        idle.append(connection)
        _note(answers, due, status, body)

    answers.wall_seconds = await send(one, rate=rate, seconds=seconds, seed=seed)
    return answers


def chat_request(users: Sequence[str]) -> Request:
    """OpenAI's request, from one user after the other."""

    def request(number: int) -> tuple[str, bytes]:
        message = {"role": "user", "content": "What shall I do about my essay this morning?"}
        body = {"model": "stub", "messages": [message], "user": users[number % len(users)]}
        return "/v1/chat/completions", json.dumps(body).encode()

    return request


def _note(answers: Answers, due: float, status: int, body: bytes) -> None:
    answers.seconds.append(time.perf_counter() - due)
    answers.statuses.append(status)
    if 200 <= status < 300:
        answers.bodies.append(body)
