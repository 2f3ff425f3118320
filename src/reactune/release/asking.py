"""JSON over HTTP from an event loop: how serving asks a model server for a tip.

aiohttp, and not httpx as elsewhere: docs/decisions/0035.
"""

from typing import Any

import aiohttp

IDLE_SECONDS = 5.0


class Asking:
    """Kept-alive connections to one server; all calls from one event loop, which closes them."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._url, self._timeout = url.rstrip("/"), aiohttp.ClientTimeout(timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """The answer's status and body.

        Raises:
            TimeoutError: it did not come in time.
            aiohttp.ClientError: there is no connection, or it broke.
        """
        if self._session is None:
            # How many ask at once is limited where tips are asked for.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, trust_env=True
            )
        async with self._session.post(self._url + path, json=body) as answer:
            return answer.status, await answer.read()

    async def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
