"""The Slurm script, with an srun and a scontrol that start the processes on this machine, each node a loopback address."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SCRIPT = REPO / "scripts" / "slurm" / "train.sbatch"
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
words = sys.argv[1:]
options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word and words.index(word) < 10)
command = words[next(i for i, word in enumerate(words) if not word.startswith("--")):]
hosts = options["nodelist"].split(",")
assert len(hosts) == int(options["nodes"]) == int(options["ntasks"]), options
tasks = [subprocess.Popen(command, env={{**os.environ, "SLURM_PROCID": str(rank)}}) for rank in range(len(hosts))]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
sys.exit(max(code if code >= 0 else 128 - code for code in (task.wait() for task in tasks)))
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
    'show hostnames') tr ',' '\\n' <<<"$3" ;;
    requeue*) echo "$2" >>"$REQUEUED" ;;
esac
"""
TINYZERO = f"""#!/usr/bin/env bash
exec {sys.executable} -m tinyzero_trl.cli "$@"
"""


NEEDS_VLLM = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not on the path")
TWO_TRAIN = ["--train-nodes", "2"]
ONE_SERVES = ["--train-nodes", "1", "--generation-nodes", "1", "generation.kv_cache_gib=0.125"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("tinyzero", TINYZERO)):
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": f"{REPO / 'src'}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "127.0.0.1,127.0.0.2", "REQUEUED": str(tmp_path / "requeued"),
        "TINYZERO_RUN": str(tmp_path / "run"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--train-nodes", "2", "--generation-nodes", "1"],
            "2 nodes to train and 1 to generate are not the 2 of the job",
        ),
        (["--train-nodes", "0", "--generation-nodes", "2"], "--train-nodes must be at least 1"),
        (["--train-nodes", "two"], "take a number"),
        (["--train-nodes", "2"], "no recipe given"),
    ],
)
def test_nodes_that_do_not_add_up_are_refused(words: list[str], message: str, environment: dict[str, str]) -> None:
    done = subprocess.run(["bash", SCRIPT, *words], env=environment, capture_output=True, text=True, cwd=REPO)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("has_gpus", [True, False])
def test_every_step_has_all_cpus_and_gpus_of_its_nodes(
    has_gpus: bool, environment: dict[str, str], tmp_path: Path
) -> None:
    """With an srun that notes what it is told and ends; the script then says that the server ended."""
    told = tmp_path / "told"
    (tmp_path / "bin" / "srun").write_text(f'#!/usr/bin/env bash\necho "PORT=${{PET_MASTER_PORT:-}} $*" >>{told}\n')
    environment |= {"SLURM_CPUS_ON_NODE": "96", "SLURM_JOB_ID": "12345"}
    environment.pop("SLURM_GPUS_ON_NODE", None)
    if has_gpus:
        environment["SLURM_GPUS_ON_NODE"] = "4"
    for nodes in (["--train-nodes", "2"], ["--train-nodes", "1", "--generation-nodes", "1"]):
        words = ["bash", str(SCRIPT), *nodes, "+countdown=grpo-tiny"]
        subprocess.run(words, env=environment, capture_output=True, cwd=REPO, timeout=60)
    train, serve = told.read_text().splitlines()
    node = "--cpus-per-task=96 --gpus-per-node=4 " if has_gpus else "--cpus-per-task=96 "
    assert train.startswith(f"PORT=24690 --nodes=2 --ntasks=2 --nodelist=127.0.0.1,127.0.0.2 {node}bash -c")
    assert (
        f" --nodes=1 --ntasks=1 --nodelist=127.0.0.2 --kill-on-bad-exit=0 {node}tinyzero serve +countdown=grpo-tiny "
        in serve
    )
    assert " --port 24691 " in serve


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_is_clean_by_shellcheck() -> None:
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("nodes", [TWO_TRAIN, pytest.param(ONE_SERVES, marks=NEEDS_VLLM)], ids=["train", "serve"])
def test_a_job_that_is_preempted_saves_goes_back_into_the_queue_and_ends_its_run(
    nodes: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "reward.py").write_text("def short(response: str) -> float:\n    return 1 / (1 + len(response))\n")
    words = [
        *nodes, "+countdown=grpo-tiny", "--processes", "1", "--accelerate_config", "ddp", "rewards.equation=0",
        f"rewards.{tmp_path}/reward.py:short=1", "data.num_train_rows=200", "data.num_eval_rows=0", "trainer.max_steps=12",
        "trainer.eval_strategy=no", "trainer.eval_on_start=false", "trainer.per_device_train_batch_size=4",
        "trainer.gradient_accumulation_steps=1", "trainer.num_generations=4", "trainer.max_completion_length=8",
        "trainer.save_steps=100",
    ]  # fmt: skip

    def submit(log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(["bash", SCRIPT, *words], env=environment, cwd=REPO, stdout=file, stderr=file)

    first = submit(tmp_path / "first.log")
    end = time.monotonic() + 600
    while not (tmp_path / "run" / "rollouts" / "train-00000002.parquet").exists():
        assert first.poll() is None, (tmp_path / "first.log").read_text()[-3000:]
        assert time.monotonic() < end
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)  # to the script alone, as --signal=B:TERM does
    assert first.wait(timeout=300) == 0, (tmp_path / "first.log").read_text()[-3000:]
    assert "back into the queue" in (tmp_path / "first.log").read_text()
    assert (tmp_path / "requeued").read_text().split() == [environment["SLURM_JOB_ID"]]
    second = submit(tmp_path / "second.log")
    assert second.wait(timeout=600) == 0, (tmp_path / "second.log").read_text()[-3000:]
    assert "continuing checkpoint-" in (tmp_path / "second.log").read_text()
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert len((tmp_path / "requeued").read_text().split()) == 1
    assert not list(tmp_path.glob("*-servers/*.token")), "a server was left"
    faults = [
        json.loads(line).get("server/faults") for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert (0.0 in faults) == (nodes is ONE_SERVES)
