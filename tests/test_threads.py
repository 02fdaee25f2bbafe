"""The number of OpenMP threads of a process and the time they wait, as libgomp itself reports what it read."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tinyzero_trl import threads

VARIABLES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")


def started(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python process with these variables of OpenMP and no others, and with what libgomp says as it is loaded."""
    others = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    env = {**others, "OMP_DISPLAY_ENV": "VERBOSE", **variables}
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(sys.platform != "linux", reason="torch's builds for other systems do not carry libgomp")
@pytest.mark.parametrize(
    ("variables", "rounds"),
    [
        ({}, threads.SPINS),
        ({"GOMP_SPINCOUNT": "77"}, 77),
        ({"OMP_WAIT_POLICY": "passive"}, 0),
    ],
)
def test_libgomp_waits_as_long_as_we_say_unless_the_person_chose(variables: dict[str, str], rounds: int) -> None:
    ended = started("from tinyzero_trl import threads; threads.bound_waiting(); import torch", **variables)
    assert ended.returncode == 0, ended.stderr
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", ended.stderr) == [str(rounds)]


def test_no_program_has_loaded_torch_before_it_says_how_threads_wait() -> None:
    programs = "import sys; from tinyzero_trl import demo, evaluation, grpo, sft; sys.exit('torch' in sys.modules)"
    assert started(programs).returncode == 0


@pytest.mark.parametrize(
    ("asked", "num_processes", "given"), [("", 1, "2"), ("", 2, "1"), ("", 3, "1"), ("1", 1, "1"), ("8", 1, "2")]
)
def test_processes_share_the_cores_out_and_never_take_more_than_was_asked(
    asked: str, num_processes: int, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    threads.share_cores(num_processes)
    assert os.environ["OMP_NUM_THREADS"] == given
