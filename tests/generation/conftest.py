"""A real vLLM server on this machine's CPU, one for all tests that can share it; they skip, saying so, where vLLM is not installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Tests are not a package (importmode=importlib): what they share is found beside them.
sys.path.insert(0, str(Path(__file__).parent))

from servers import make_model, start

HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(
    not HAS_VLLM, reason="vLLM is not on the path; make test runs these by themselves where it could install it"
)
SHARE_A_SERVER = ("test_rounds", "test_server", "test_server_faults")
VLLM_TESTS = {
    *SHARE_A_SERVER,
    *("test_colocated", "test_engines_run", "test_killed_server", "test_two_servers"),
    *("test_broadcast", "test_http_client", "test_server_pool"),
}
"""Files of tests with vLLM; those that share no server start what they need themselves."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem in VLLM_TESTS:
            item.add_marker(needs_vllm)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.alone)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file at a time to each worker, and the files that share a server to one: its start takes half a minute."""
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "server" if Path(file).stem in SHARE_A_SERVER else file

    return ByServer(config, log)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    made: dict[bool, Path] = {}

    def get(tied: bool) -> Path:
        if tied not in made:
            made[tied] = make_model(tmp_path_factory.mktemp("tied" if tied else "untied"), tied=tied)
        return made[tied]

    return get


@pytest.fixture(scope="session")
def server(models: Callable[[bool], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The server of the tied model that tests share: each gives it the weights it needs."""
    running = start(models(True), tmp_path_factory.mktemp("server"))
    yield running
    running.stop()
