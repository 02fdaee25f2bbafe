"""Several servers as one: rows are dealt, weights go to all, and what one does not do the others do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM, which is not on the path")

from tinyzero_trl.config import compose, generation
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.generation.http_client import HttpClient, ServerError
from tinyzero_trl.generation.server_pool import ServerPool, dealt


class Stub:
    """The part of a vLLM server that a pool looks at: a version, a transfer that is open or not, completions."""

    def __init__(self, name: str) -> None:
        self.name, self.version, self.rows = name, "default", 0
        self.is_open = self.is_broken = self.is_paused = False
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
                status, given = (500, {}) if stub.is_broken else stub.do(self.path, body)
                content = json.dumps(given).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = answer

            def log_message(self, *words: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.http_client = HttpClient(f"http://127.0.0.1:{self.http.server_port}", token="t" * 43, seconds_per_call=5.0)

    def do(self, path: str, body: Any) -> tuple[int, Any]:
        if path.startswith("/start_weight_update"):
            status, self.is_open = (500 if self.is_open else 200), True
            return status, {}
        if path.split("?")[0] in ("/pause", "/resume"):
            self.is_paused = path != "/resume"
        if path == "/finish_weight_update":
            self.is_open, self.version = False, body.get("weight_version", self.version)
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        if path == "/v1/completions":
            assert not self.is_paused
            self.rows += 1
            return 200, {"by": self.name, "row": body["row"]}
        return 200, {"success": True}


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    found = [Stub(name) for name in "abc"]
    yield found
    for stub in found:
        stub.http.shutdown()


def push(pool: ServerPool, version: str) -> None:
    pool.post("/pause?mode=abort")
    pool.post("/start_weight_update?is_checkpoint_format=true")
    pool.post("/finish_weight_update", {"weight_version": version})
    pool.post("/resume")


def complete(pool: ServerPool, num_rows: int = 7) -> list[str]:
    answers = pool.post_all("/v1/completions", [{"row": row} for row in range(num_rows)], seconds=10.0)
    assert [answer["row"] for answer in answers] == list(range(num_rows))
    return [answer["by"] for answer in answers]


@pytest.mark.parametrize(("num_rows", "num_servers"), [(0, 1), (1, 3), (7, 3), (8, 2), (512, 5)])
def test_every_row_is_dealt_once_in_order_and_evenly(num_rows: int, num_servers: int) -> None:
    shares = dealt(range(num_rows), num_servers)
    assert [row for share in shares for row in share] == list(range(num_rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_rows_are_dealt_over_all_and_weights_go_to_all(stubs: list[Stub]) -> None:
    pool = ServerPool([stub.http_client for stub in stubs])
    push(pool, "run:0:1")
    assert complete(pool) == list("aaabbcc")
    assert {stub.version for stub in stubs} == {"run:0:1"}


def test_the_share_of_a_server_that_fails_is_done_by_the_others_until_it_is_back(stubs: list[Stub]) -> None:
    pool = ServerPool([stub.http_client for stub in stubs])
    push(pool, "run:0:1")
    stubs[1].is_broken = True
    assert complete(pool) == list("aaaaccc")
    assert complete(pool) == list("aaaaccc")
    stubs[1].is_broken, stubs[1].version = False, "default"
    stubs[1].is_open = stubs[1].is_paused = True
    assert complete(pool) == list("aaaaccc"), "it has none of the weights yet"
    push(pool, "run:1:2")
    assert complete(pool) == list("aaabbcc")
    assert stubs[1].version == "run:1:2"


def test_rows_of_a_server_that_came_back_with_other_weights_are_thrown_away(stubs: list[Stub]) -> None:
    pool = ServerPool([stub.http_client for stub in stubs])
    push(pool, "run:0:1")
    stubs[2].version = "default"
    assert complete(pool) == list("aaabbab")
    assert stubs[2].rows == 2


def test_where_all_fail_the_fleet_does_and_all_are_tried_again(stubs: list[Stub]) -> None:
    pool = ServerPool([stub.http_client for stub in stubs])
    push(pool, "run:0:1")
    for stub in stubs:
        stub.is_broken = True
    with pytest.raises(ServerError, match="answered 500"):
        complete(pool)
    assert not pool.is_healthy()
    for stub in stubs:
        stub.is_broken = False
    assert complete(pool) == list("aaabbcc")


@pytest.mark.parametrize(
    ("servers", "message"),
    [
        ("[]", "must be auto or a URL"),
        ("[http://a:1,b]", "must be auto or a URL such as http://127.0.0.1:8000, got 'b'"),
        ("[http://a:1,http://a:1]", "names a server twice"),
        ("[http://a:1,http://b:1] generation.token_file=[x]", "has 1 files for the 2"),
        ("[http://a:1,http://b:1] generation.weight_transfer=nccl trainer.use_cpu=false", "reaches one server"),
    ],
)
def test_a_list_of_servers_that_cannot_be_right_is_refused(servers: str, message: str) -> None:
    words = ["+countdown=grpo-tiny", "generation.engine=server", *f"generation.server={servers}".split()]
    with pytest.raises(ConfigError, match=message):
        generation.check_engine(compose(words))
