"""OpenMP threads, with which torch computes on a CPU: how many a process has, and how they wait for each other.

libgomp, which torch's builds for Linux carry, reads both from the environment when torch is imported, so both are set before that.
No result depends on how threads wait; sums of floats depend on their number in the last digits.
"""

from __future__ import annotations

import os

SPINS = 20_000
"""Rounds that a thread without work waits actively before it sleeps; libgomp's default is 300,000.

A thread that waits actively keeps its core from the thread it waits for: beside another busy process two threads then take
several times as long as one. A thread that sleeps at once has to be woken for each small operation of a small model.
Source: docs/benchmarks/busy.py.
"""


def bound_waiting() -> None:
    """Set how long OpenMP threads of this process, and of those it starts, wait actively: `SPINS` rounds, unless the person chose."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def share_cores(num_processes: int) -> None:
    """Lower OMP_NUM_THREADS to the share of cores of each process: threads that share a core run ten times slower than one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // num_processes)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    os.environ["OMP_NUM_THREADS"] = str(min(int(asked), share) if asked.isdigit() and int(asked) else share)
