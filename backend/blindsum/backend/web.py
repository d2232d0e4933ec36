"""What a role shows over HTTP: its board as a page, as JSON, as a stream and as metrics. Read only.

/             the page (static files of this package, nothing from elsewhere)
/api/board    the board, JSON; ?rounds=N for the last N rounds of each task
/api/stream   the same whenever it changes, as server-sent events, at most twice a second
/metrics      Prometheus
/healthz      200 while the role is connected to its broker, else 503
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from importlib.resources import files
from types import TracebackType
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blindsum.backend.board import ROUNDS_MAX, Board
from blindsum.backend.metrics import CONTENT_TYPE, Exposition
from blindsum.protocol.errors import BlindsumError

__all__ = ["WebServer", "application"]

STREAMS_MAX: Final = 32
STREAM_PAUSE_S: Final = 0.5
STREAM_ROUNDS: Final = 100
KEEPALIVE_S: Final = 15.0
CONNECTIONS_MAX: Final = 128
STOP_TIMEOUT_S: Final = 3.0

_TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_HEADERS: Final = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}


def application(board: Board) -> Starlette:
    """The ASGI application of one board."""
    exposition = Exposition(board)
    streams = asyncio.Semaphore(STREAMS_MAX)

    async def page(request: Request) -> Response:
        name = request.path_params.get("name") or "index.html"
        kind = _TYPES.get(name.rpartition(".")[2])
        file = files("blindsum.backend").joinpath("page", name)
        if kind is None or "/" in name or not file.is_file():
            return Response("not found\n", 404, media_type="text/plain")
        return Response(file.read_bytes(), media_type=kind)

    async def snapshot(request: Request) -> Response:
        text = request.query_params.get("rounds", str(ROUNDS_MAX))
        if not text.isdecimal() or not 1 <= int(text) <= ROUNDS_MAX:
            return JSONResponse({"error": f"rounds must be in 1..{ROUNDS_MAX}"}, 400)
        return JSONResponse(board.snapshot(rounds=int(text)))

    async def stream(request: Request) -> Response:
        if streams.locked():
            return JSONResponse({"error": f"{STREAMS_MAX} streams are open"}, 503)

        async def changes() -> AsyncIterator[str]:
            async with streams:
                version, quiet_s = -1, 0.0
                while not await request.is_disconnected():
                    if board.version != version:
                        shown = board.snapshot(rounds=STREAM_ROUNDS)
                        version, quiet_s = shown["version"], 0.0
                        yield f"data: {json.dumps(shown)}\n\n"
                    elif quiet_s >= KEEPALIVE_S:
                        quiet_s = 0.0
                        yield ": still here\n\n"
                    quiet_s += STREAM_PAUSE_S
                    await asyncio.sleep(STREAM_PAUSE_S)

        return StreamingResponse(changes(), media_type="text/event-stream")

    async def metrics(_request: Request) -> Response:
        return Response(exposition.text(), headers={"content-type": CONTENT_TYPE})

    async def health(_request: Request) -> Response:
        return JSONResponse({"role": board.role, "connected": board.healthy}, 200 if board.healthy else 503)

    routes = [
        Route("/api/board", snapshot),
        Route("/api/stream", stream),
        Route("/metrics", metrics),
        Route("/healthz", health),
        Route("/", page),
        Route("/{name}", page),
    ]
    return Starlette(routes=routes, middleware=[Middleware(_SecureHeaders)])


class WebServer:
    """Serves a board at `host`:`port` from a thread; a context manager. Raises BlindsumError "port-busy"."""

    def __init__(self, board: Board, host: str, port: int) -> None:
        self._socket = _listen(host, port)
        config = uvicorn.Config(
            application(board),
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_graceful_shutdown=1,
            lifespan="off",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))


class _SecureHeaders:
    """The browser may load what we serve, and nothing else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS.items()]
            await send(message)

        await self._app(scope, receive, secured)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, proto)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(CONNECTIONS_MAX)
    except OSError as error:
        raise BlindsumError("port-busy", f"{host}:{port}: {error.strerror}") from None
    return made
