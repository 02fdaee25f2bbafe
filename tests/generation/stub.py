"""A server that answers as it is told: by itself, or with what a real one answers to the same."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Stub:
    """A server that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.behave: Callable[[Any], None] = lambda request: reply(request, 200, {})
        self.over = threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                stub.asked.append((self.command, self.path, dict(self.headers)))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    stub.behave(self)

            do_GET = do_POST = answer

            def log_message(self, *words: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        # It looks whether it is to end every 0.02 seconds, not every half.
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.over.set()
        self.http.shutdown()

    def forward_to(self, url: str) -> None:
        """From here on it is a proxy of the server at `url`."""
        self.behave = lambda request: forward(request, url)

    def count(self, path: str) -> int:
        """The number of requests for `path`."""
        return sum(asked.split("?")[0] == path for _, asked, _ in self.asked)

    def stall(self, request: Any) -> None:
        """No answer: longer than any deadline of a test, so that a slow machine is no answer either."""
        self.over.wait(900)

    def drip(self, request: Any) -> None:
        """A body that comes a byte at a time and never whole: no pause is long enough for a read timeout."""
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        while not self.over.wait(0.05):
            request.wfile.write(b" ")
            request.wfile.flush()


def reply(request: Any, status: int, body: Any, **headers: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request.send_response(status)
    request.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(content)


def forward(request: Any, url: str) -> None:
    """Ask the server at `url` the same, and give its answer."""
    headers = {name: request.headers[name] for name in ("Authorization", "Content-Type") if name in request.headers}
    data = request.body if request.command == "POST" else None
    asked = urllib.request.Request(url + request.path, data=data, headers=headers, method=request.command)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            reply(request, answer.status, answer.read())
    except urllib.error.HTTPError as error:
        reply(request, error.code, error.read())
