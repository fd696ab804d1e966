"""A proxy of FastAPI and aiohttp that does nothing but pass on: what the gateway is measured beside."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import aiohttp
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

app = FastAPI(docs_url=None, redoc_url=None)
_sessions: list[aiohttp.ClientSession] = []


@app.post("/api/v1/{rest:path}")
async def pass_on(request: Request, rest: str) -> Response:
    if not _sessions:
        _sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
    kept = {"content-type": request.headers["content-type"]}
    url = f"{os.environ['FLOWISE_BASE_URL']}/api/v1/{rest}"
    if "FLOWISE_API_KEY" in os.environ:
        kept["authorization"] = f"Bearer {os.environ['FLOWISE_API_KEY']}"
    reply = await _sessions[0].post(url, data=await request.body(), headers=kept)
    kind = reply.headers["content-type"]
    if kind.startswith("text/event-stream"):

        async def events() -> AsyncIterator[bytes]:
            async with reply:
                async for chunk in reply.content.iter_any():
                    yield chunk

        return StreamingResponse(events(), reply.status, {"content-type": kind})
    async with reply:
        return Response(await reply.read(), reply.status, {"content-type": kind})


@app.get("/health/live")
async def live() -> str:
    return "alive"
