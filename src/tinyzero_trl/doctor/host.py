"""What this machine has: GPUs, cores, memory, disks. Asks the system only, never a library that may be broken."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
SECONDS_TO_ANSWER = 20
"""After which nvidia-smi counts as hung; a driver that initialises takes up to ten."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as its driver tells it."""

    name: str
    memory_gib: float
    driver: str
    """Version of the driver."""


@dataclass(frozen=True)
class Host:
    """This machine at this moment."""

    gpus: tuple[Gpu, ...]
    driver_cuda: str | None
    """Newest CUDA version the driver runs, or None."""
    driver_fault: str | None
    """First line of what nvidia-smi answered where it failed, or None."""
    num_cores: int
    """Cores this process may use: its affinity and its cgroup's quota, whichever is less."""
    memory_gib: float
    shm_gib: float | None
    """Size of /dev/shm; None where there is none, as on macOS."""
    free_gib: Mapping[str, float]
    """Free disk space by folder: where runs are written, where models are kept, where temporary files go."""
    environment: Mapping[str, str]


def host(environment: Mapping[str, str] | None = None) -> Host:
    """This machine, asked in less than a second where no GPU is there."""
    env = dict(os.environ if environment is None else environment)
    found, driver_cuda, fault = gpus()
    hub = env.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    folders = {"runs (outputs/)": "outputs", "models (HF_HOME)": hub, "temporary files": env.get("TMPDIR") or "/tmp"}
    return Host(
        gpus=found,
        driver_cuda=driver_cuda,
        driver_fault=fault,
        num_cores=num_cores(),
        memory_gib=memory_gib(),
        shm_gib=shutil.disk_usage("/dev/shm").total / GIB if Path("/dev/shm").is_dir() else None,
        free_gib={use: _free_gib(Path(folder)) for use, folder in folders.items()},
        environment=env,
    )


def gpus() -> tuple[tuple[Gpu, ...], str | None, str | None]:
    """NVIDIA's GPUs, the newest CUDA version their driver runs, and what went wrong in asking; nothing where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return (), None, None
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
        shown = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), None, f"nvidia-smi: {error}"
    if listed.returncode:
        said = (listed.stdout + listed.stderr).strip().splitlines()
        return (), None, said[0] if said else f"nvidia-smi ended with code {listed.returncode}"
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", shown.stdout)
    return parsed_gpus(listed.stdout), cuda.group(1) if cuda else None, None


def parsed_gpus(listing: str) -> tuple[Gpu, ...]:
    """The GPUs of nvidia-smi's lines `name, MiB, driver`."""
    found = []
    for line in listing.splitlines():
        name, memory, driver = (part.strip() for part in line.rsplit(",", 2))
        # A card that shares the host's memory answers "[N/A]".
        found.append(Gpu(name, float(memory) / 1024 if memory.replace(".", "").isdigit() else 0.0, driver))
    return tuple(found)


def num_cores() -> int:
    """Cores this process may use. A container's quota is no affinity: os.cpu_count() and torch do not see it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def memory_gib() -> float:
    """Memory of the machine (GiB), or of the container where that is less; 0 where the system does not tell."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (OSError, ValueError):
        return 0.0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        return total if limit == "max" else min(total, int(limit) / GIB)
    except (OSError, ValueError):
        return total


def _free_gib(folder: Path) -> float:
    """Free space of the disk that `folder` is on, or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / GIB
