"""A run on two real servers, one of which ends: the rows of a run on both, undisturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from servers import start

REPO = Path(__file__).resolve().parents[2]
STEPS = 10


@pytest.mark.nightly
def test_a_run_goes_on_with_the_other_where_one_of_its_servers_ends(
    models: Callable[[bool], Path], tmp_path: Path
) -> None:
    servers = []
    try:
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            servers.append(start(models(True), tmp_path / name, max_model_length=1024))
        straight = run(servers, models(True), tmp_path, "straight")
        assert straight.wait(timeout=600) == 0, log_of(tmp_path, "straight")
        disturbed = run(servers, models(True), tmp_path, "disturbed")
        wait_for(3, disturbed, tmp_path)
        servers[1].stop()
        assert disturbed.wait(timeout=600) == 0, log_of(tmp_path, "disturbed")
    finally:
        for server in servers:
            server.stop()
    ours, theirs = rollouts(tmp_path / "disturbed"), rollouts(tmp_path / "straight")
    assert len(theirs) == STEPS * 16
    assert [(row["completion"], row["reward"]) for row in ours] == [
        (row["completion"], row["reward"]) for row in theirs
    ]
    assert all(row["weights_step"] == row["step"] - 1 for row in ours)
    log = log_of(tmp_path, "disturbed")
    assert "1 of 2 servers go on without it" in log
    for line in (tmp_path / "disturbed" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line).get("sampling/sampling_logp_difference/max", 0) < 1e-4


def run(servers: list[Any], model: Path, tmp_path: Path, name: str) -> subprocess.Popen[bytes]:
    (tmp_path / "reward.py").write_text("def short(response: str) -> float:\n    return 1 / (1 + len(response))\n")
    words = [
        "+countdown=grpo-tiny", f"model.model_name_or_path={model}", "rewards.equation=0",
        f"rewards.{tmp_path}/reward.py:short=1", "generation.engine=server", "generation.seconds_per_call=10",
        f"generation.server=[{','.join(server.url for server in servers)}]", "trainer.vllm_max_model_length=1024",
        f"generation.token_file=[{','.join(str(server.token_file) for server in servers)}]", f"trainer.max_steps={STEPS}",
        "trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=2", "trainer.num_generations=4",
        "trainer.max_completion_length=24", "trainer.save_steps=100", "data.num_train_rows=200", "data.num_eval_rows=0",
        "trainer.eval_strategy=no", "trainer.eval_on_start=false", f"output_dir={tmp_path / name}",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / f"{name}.log").open("wb") as log:
        command = [sys.executable, str(REPO / "src/tinyzero_trl/grpo.py"), *words]
        return subprocess.Popen(command, cwd=REPO, env=env, stdout=log, stderr=subprocess.STDOUT)


def wait_for(num_steps: int, process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    end = time.monotonic() + 600
    while len(list((tmp_path / "disturbed" / "rollouts").glob("train-*"))) < num_steps:
        assert process.poll() is None, log_of(tmp_path, "disturbed")
        assert time.monotonic() < end
        time.sleep(0.02)


def log_of(tmp_path: Path, name: str) -> str:
    return (tmp_path / f"{name}.log").read_text(errors="replace")[-4000:]


def rollouts(folder: Path) -> list[dict[str, Any]]:
    shards = sorted((folder / "rollouts").glob("train-*.parquet"))
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]
