"""JSON over HTTP from an event loop: how serving asks a model server for a tip.

aiohttp, and not httpx as elsewhere: docs/decisions/0035.
"""

from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

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
            # Of the environment the proxy is asked, and once: aiohttp's own `trust_env` would
            # also look for a netrc file in another thread, for every request.
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, proxy=_proxy_of(self._url)
            )
        async with self._session.post(self._url + path, json=body) as answer:
            return answer.status, await answer.read()

    async def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a URL (`HTTP_PROXY`, `NO_PROXY`, ...)."""
    place = urlsplit(url)
    if proxy_bypass(place.hostname or ""):
        return None
    return getproxies().get(place.scheme)
