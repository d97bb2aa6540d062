"""Serve the API and the page over HTTP, until SIGTERM or Ctrl-C."""

import asyncio
import json
import signal
import socket
from contextlib import closing
from typing import Any

from pipeline.core.local_port import HOST
from pipeline.inference.api import ANSWER_S, make_app
from pipeline.inference.batching import Batcher
from pipeline.inference.ensemble import Ensemble
from pipeline.inference.gate import Gate

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_S = 20  # in which a request's header must have arrived, after the connection or the last answer


class Protocol(H11Protocol):
    """uvicorn's HTTP, which also closes connections on which no header arrives, and explains errors as JSON.

    uvicorn itself starts the timer only after an answer, and stops it at the next byte.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyrefly: ignore[bad-override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        self.conn.receive_data(data)
        self.handle_events()

    def send_400_response(self, msg: str) -> None:
        headers = [("content-type", "application/json"), ("connection", "close")]
        body = json.dumps({"error": msg}).encode()
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()


def serve(ensemble: Ensemble, listening: socket.socket, host: str, token: str | None) -> None:
    """Answer requests to `host`, with the `token` if there is one, that arrive at the socket `listening`.

    After SIGTERM or Ctrl-C, requests that have arrived are answered, and new ones are refused. Returns after SIGTERM;
    raises KeyboardInterrupt after Ctrl-C.
    """
    batcher = Batcher(ensemble)
    app = Gate(make_app(batcher, host == HOST, bool(token)), host, token, lambda: server.should_exit)
    settings: dict[str, Any] = {"http": Protocol, "ws": "none", "lifespan": "off", "proxy_headers": False}
    log: dict[str, Any] = {"log_level": "error", "access_log": False, "server_header": False}
    limits: dict[str, Any] = {"timeout_keep_alive": HEADER_S, "timeout_graceful_shutdown": ANSWER_S}
    server = uvicorn.Server(uvicorn.Config(app, **settings, **log, **limits))

    def stop(*_: object) -> None:  # uvicorn handles signals while it runs, and raises them again afterwards
        server.should_exit = True

    signal.signal(signal.SIGTERM, stop)
    with closing(batcher):
        server.run(sockets=[listening])
