"""The hub out of reach: one line within seconds, the nearest name, and what is in the cache loads as ever."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tinyzero_trl import hub
from tinyzero_trl.config import compose
from tinyzero_trl.data.sources import read_source
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.models import load_path
from tinyzero_trl.models.policy import checked_start

LIMIT = 60.0
"""Seconds for the whole answer, however busy the machine is; idle, it takes those of hub.SECONDS."""


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a program that takes a call and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Puts the hub at an address, with an empty cache; all is as before afterwards."""
    import datasets

    hub.reached.cache_clear()

    def put(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    yield put
    hub.reached.cache_clear()


def refused(call: Any, *arguments: Any) -> str:
    """The text of the one line; it comes in time."""
    start = time.monotonic()
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        call(*arguments)
    assert time.monotonic() - start < LIMIT
    assert "\n" not in str(raised.value)
    return str(raised.value)


def config_of(name: str) -> Any:
    return compose(["+countdown=grpo-tiny", f"model.model_name_or_path={name}"])


def test_a_misspelt_model_without_network_is_one_line_with_the_nearest_name(at: Any, capfd: Any) -> None:
    at("http://127.0.0.1:1")
    cfg = config_of("tinny")
    capfd.readouterr()
    said = refused(checked_start, cfg)
    assert said.startswith(
        "model.model_name_or_path=tinny: there is no such folder, and http://127.0.0.1:1 does not answer"
    )
    assert said.endswith("; did you mean tiny?")
    assert capfd.readouterr() == ("", "")


def test_a_hub_that_never_answers_is_given_up_in_time(at: Any, silent: str, capfd: Any) -> None:
    at(silent)
    cfg = config_of("Qwen/Qwen2.5-0.5B")
    capfd.readouterr()
    said = refused(checked_start, cfg)
    assert f"{silent} does not answer: " in said
    assert "did you mean" not in said
    assert capfd.readouterr() == ("", "")


def test_a_misspelt_data_source_without_network_is_one_line(at: Any, capfd: Any) -> None:
    at("http://127.0.0.1:1")
    said = refused(read_source, "genrated")
    assert "dataset 'genrated' is neither a file or folder here nor readable from the hub" in said
    assert "127.0.0.1:1 does not answer" in said
    assert "did you mean generated?" in said
    assert "did you mean" not in refused(read_source, "Jiayi-Pan/Countdown-Tasks-3to4")
    assert capfd.readouterr().err == ""


def test_a_name_near_a_folder_or_a_cached_model_is_told_that(
    at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at("http://127.0.0.1:1")
    (tmp_path / "cache" / "models--Qwen--Qwen2.5-0.5B").mkdir(parents=True)
    (tmp_path / "models" / "countdown-3b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.nearest_model("Qwen/Qwen2.5-0.5b") == "; did you mean Qwen/Qwen2.5-0.5B?"
    assert hub.nearest_model("models/countdwn-3b") == "; did you mean models/countdown-3b?"
    assert hub.nearest_model("./models/countdown-3") == "; did you mean models/countdown-3b?"
    assert hub.nearest_model("meta-llama/Llama-3") == ""
    assert refused(checked_start, config_of("./models/countdwn-3b")).endswith("did you mean models/countdown-3b?")


def test_a_model_in_the_cache_loads_without_network(at: Any, tmp_path: Path) -> None:
    at("http://127.0.0.1:1")
    commit = "0" * 40
    repo = tmp_path / "cache" / "models--someone--small"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(load_path("tiny"), repo / "snapshots" / commit)
    start = time.monotonic()
    assert checked_start(config_of("someone/small")).tokenizer.eos_token_id is not None
    assert time.monotonic() - start < LIMIT


def test_a_hub_that_answers_is_used_as_ever(at: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            at(f"http://127.0.0.1:{server.stdout.readline().strip()}")
            assert hub.reached() == (True, "")
            assert constants.HF_HUB_OFFLINE is False
        finally:
            server.kill()


SERVER = """
import http.server
class Answers(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404)
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_offline_that_a_person_asked_for_asks_nobody(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at("http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_why_not_reached", lambda *_: pytest.fail("the hub was asked"))
    assert hub.reached() == (False, "HF_HUB_OFFLINE is set")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set; did you mean tiny"):
        checked_start(config_of("tinny"))


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "http://127.0.0.1:99999", "ftp://127.0.0.1"])
def test_an_address_that_is_none_is_no_traceback(endpoint: str, at: Any) -> None:
    at(endpoint)
    is_there, why = hub.reached()
    assert not is_there
    assert endpoint in why
