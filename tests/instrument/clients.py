"""Every client that is governed, with one face: so that each rule is tested on all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
import httpx2
import requests


@dataclass
class Got:
    """An answer as the client gave it."""

    status: int
    body: bytes


class Requests:
    name = "requests"
    refused = requests.ConnectionError
    timed_out = requests.Timeout

    def post(self, url: str, *, timeout: float = 60, **body: Any) -> Got:
        response = requests.post(url, timeout=timeout, **body)
        return Got(response.status_code, response.content)

    def lines(self, url: str, most: int | None = None, **body: Any) -> list[bytes]:
        found = []
        with requests.post(url, stream=True, timeout=60, **body) as response:
            for line in response.iter_lines():
                found.append(line)
                if len(found) == most:
                    break
        return found

    def get(self, url: str) -> Got:
        response = requests.get(url, timeout=60)
        return Got(response.status_code, response.content)

    def close(self) -> None:
        """Nothing is kept open."""


class Session(Requests):
    name = "requests.Session"

    def __init__(self) -> None:
        self.session = requests.Session()

    def post(self, url: str, *, timeout: float = 60, **body: Any) -> Got:
        response = self.session.post(url, timeout=timeout, **body)
        return Got(response.status_code, response.content)

    def close(self) -> None:
        self.session.close()


class Httpx:
    name = "httpx"
    library: Any = httpx

    @property
    def refused(self) -> Any:
        return self.library.ConnectError

    @property
    def timed_out(self) -> Any:
        return self.library.TimeoutException

    def __init__(self) -> None:
        self.client = self.library.Client(timeout=60)

    def post(self, url: str, *, timeout: float = 60, **body: Any) -> Got:
        response = self.client.post(url, timeout=timeout, **body)
        return Got(response.status_code, response.content)

    def lines(self, url: str, most: int | None = None, **body: Any) -> list[bytes]:
        found = []
        with self.client.stream("POST", url, **body) as response:
            for line in response.iter_lines():
                found.append(line.encode())
                if len(found) == most:
                    break
        return found

    def get(self, url: str) -> Got:
        response = self.client.get(url)
        return Got(response.status_code, response.content)

    def close(self) -> None:
        self.client.close()


class Httpx2(Httpx):
    name = "httpx2"
    library = httpx2


class HttpxAsync(Httpx):
    name = "httpx.AsyncClient"

    def __init__(self) -> None:
        """Each call makes a client of its own, in a loop of its own."""

    def close(self) -> None:
        """Nothing is kept open."""

    def post(self, url: str, *, timeout: float = 60, **body: Any) -> Got:
        async def main() -> Got:
            async with self.library.AsyncClient(timeout=timeout) as client:
                response = await client.post(url, **body)
                return Got(response.status_code, response.content)

        return asyncio.run(main())

    def lines(self, url: str, most: int | None = None, **body: Any) -> list[bytes]:
        async def main() -> list[bytes]:
            found: list[bytes] = []
            async with (
                self.library.AsyncClient(timeout=60) as client,
                client.stream("POST", url, **body) as response,
            ):
                async for line in response.aiter_lines():
                    found.append(line.encode())
                    if len(found) == most:
                        break
            return found

        return asyncio.run(main())

    def get(self, url: str) -> Got:
        async def main() -> Got:
            async with self.library.AsyncClient(timeout=60) as client:
                response = await client.get(url)
                return Got(response.status_code, response.content)

        return asyncio.run(main())


class Httpx2Async(HttpxAsync):
    name = "httpx2.AsyncClient"
    library = httpx2


class Aiohttp:
    name = "aiohttp"
    refused = aiohttp.ClientConnectorError
    timed_out = TimeoutError

    def close(self) -> None:
        """Nothing is kept open."""

    def post(self, url: str, *, timeout: float = 60, **body: Any) -> Got:
        async def main() -> Got:
            limit = aiohttp.ClientTimeout(total=timeout)
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.post(url, **body) as response,
            ):
                return Got(response.status, await response.read())

        return asyncio.run(main())

    def lines(self, url: str, most: int | None = None, **body: Any) -> list[bytes]:
        async def main() -> list[bytes]:
            found: list[bytes] = []
            async with aiohttp.ClientSession() as session, session.post(url, **body) as response:
                async for line in response.content:
                    found.append(line.rstrip(b"\n"))
                    if len(found) == most:
                        break
            return found

        return asyncio.run(main())

    def get(self, url: str) -> Got:
        async def main() -> Got:
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                return Got(response.status, await response.read())

        return asyncio.run(main())


CLIENTS = (Requests, Session, Httpx, Httpx2, HttpxAsync, Httpx2Async, Aiohttp)
