"""Finds GPUs, cores, memory and disks, and compares them with the needs of a run. Uses no library, as any may be broken."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GIB = 2**30
SECONDS_TO_ANSWER = 20
"""Seconds after which nvidia-smi counts as hung; a driver that initialises takes up to ten."""
MIN_SHM_GIB = 1.0
"""Least size of /dev/shm, where NCCL and vLLM's workers exchange data; Docker's default is 64 MiB."""
MIN_RUNS_GIB = 2.0
"""Least free space for runs: a tiny run with its checkpoints takes 0.2 GiB, others take more."""
MIN_MODELS_GIB = 20.0
"""Free space for models below which there is a note; Qwen2.5-7B takes 15 GiB."""


@dataclass(frozen=True)
class Finding:
    """One row of the table: what was found, what would be right, and the command that repairs it."""

    subject: str
    """A package, a device, a limit."""
    found: str
    """Its state, with the unit."""
    status: Literal["ok", "note", "problem"] = "ok"
    """`note`: works, but is not as tested or not as fast as it could be; `problem`: breaks a run."""
    wanted: str = ""
    """The right state, or the reason why this one is not; empty if all is well."""
    command: str = ""
    """The command that repairs it; a problem always has one."""

    def __post_init__(self) -> None:
        assert self.status == "ok" or self.wanted, f"{self.subject}: say what is wrong"
        assert self.status != "problem" or self.command, f"{self.subject}: say what repairs it"


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as its driver describes it."""

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
    why_no_driver: str | None
    """First line of nvidia-smi's output if it failed, or None."""
    num_cores: int
    """Cores this process may use: its affinity or its cgroup's quota, whichever is less."""
    memory_gib: float
    shm_gib: float | None
    """Size of /dev/shm; None without one, as on macOS."""
    free_gib: Mapping[str, float]
    """Free disk space for runs, for models and for temporary files."""
    environment: Mapping[str, str]


def host() -> Host:
    """This machine; takes less than a second without a GPU."""
    env = os.environ
    hub = env.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    folders = {"runs (outputs/)": "outputs", "models (HF_HOME)": hub, "temporary files": env.get("TMPDIR") or "/tmp"}
    shm = shutil.disk_usage("/dev/shm").total / GIB if Path("/dev/shm").is_dir() else None
    free = {use: _free_gib(Path(folder)) for use, folder in folders.items()}
    return Host(*gpus(), num_cores(), memory_gib(), shm, free, dict(env))


def gpus() -> tuple[tuple[Gpu, ...], str | None, str | None]:
    """(NVIDIA's GPUs, newest CUDA version of their driver, error of nvidia-smi); nothing if there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return (), None, None
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
        shown = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), None, f"nvidia-smi: {error}"
    if listed.returncode:
        lines = (listed.stdout + listed.stderr).strip().splitlines()
        return (), None, lines[0] if lines else f"nvidia-smi ended with code {listed.returncode}"
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", shown.stdout)
    return parsed_gpus(listed.stdout), cuda.group(1) if cuda else None, None


def parsed_gpus(listing: str) -> tuple[Gpu, ...]:
    """The GPUs of nvidia-smi's lines `name, MiB, driver`."""
    fields = [[part.strip() for part in line.rsplit(",", 2)] for line in listing.splitlines()]
    # A card that shares the host's memory has "[N/A]" here.
    return tuple(
        Gpu(name, float(mib) / 1024 if mib.replace(".", "").isdigit() else 0.0, driver) for name, mib, driver in fields
    )


def num_cores() -> int:
    """Cores this process may use. os.cpu_count() and torch do not see the quota of a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def memory_gib() -> float:
    """Memory of the machine (GiB), or of the container if that is less; 0 if the system does not say."""
    total = 0.0
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")) / GIB)
    except (OSError, ValueError):  # no cgroup, or one without a limit ("max")
        return total


def _free_gib(folder: Path) -> float:
    """Free space (GiB) of the disk of `folder`, which need not exist yet."""
    folder = folder.absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free / GIB


def machine_findings(host: Host, *, has_vllm: bool = False) -> Iterator[Finding]:
    """Rows about the machine. has_vllm: True if a vLLM is installed, which needs shared memory also with one GPU."""
    yield from _gpu_findings(host)
    yield Finding("memory", f"{host.memory_gib:.0f} GiB")
    yield _threads(host)
    if host.shm_gib is not None:
        yield _shared_memory(host.shm_gib, is_needed=len(host.gpus) > 1 or has_vllm)
    yield from (_disk(f"disk for {use}", free) for use, free in host.free_gib.items())


def _gpu_findings(host: Host) -> Iterator[Finding]:
    if host.why_no_driver:
        wanted = (
            "nvidia-smi is there and does not answer: driver and kernel module differ after an update, or the container "
            "was started without GPUs"
        )
        command = "sudo reboot   # in a container: docker run --gpus all ..."
        yield Finding("NVIDIA driver", host.why_no_driver, "problem", wanted, command)
    elif not host.gpus:
        yield Finding("devices", "no NVIDIA GPU: runs on the CPU")
    for index, gpu in enumerate(host.gpus):
        yield Finding(f"GPU {index}", f"{gpu.name}, {gpu.memory_gib:.0f} GiB, driver {gpu.driver}")
    name = "CUDA_VISIBLE_DEVICES"
    visible = host.environment.get(name)
    if host.gpus and visible is not None and visible.strip() in ("", "-1"):
        yield Finding(name, repr(visible), "note", "hides every GPU from a run", f"unset {name}")


def _threads(host: Host) -> Finding:
    asked, cores = host.environment.get("OMP_NUM_THREADS"), f"{host.num_cores} cores"
    command = f"export OMP_NUM_THREADS={host.num_cores}"
    if asked is None:
        return Finding("CPU", f"{cores}; OMP_NUM_THREADS is not set (`tinyzero train` shares the cores out itself)")
    if not asked.isdigit() or int(asked) < 1:
        wanted = "a whole number from 1 on; libraries ignore any other and start a thread for every core they see"
        return Finding("CPU", f"{cores}, OMP_NUM_THREADS={asked!r}", "problem", wanted, command)
    if int(asked) > host.num_cores:
        wanted = f"at most {host.num_cores}: threads that share a core run ten times slower than one that has it"
        return Finding("CPU", f"{cores}, OMP_NUM_THREADS={asked}", "problem", wanted, command)
    return Finding("CPU", f"{cores}, OMP_NUM_THREADS={asked}")


def _shared_memory(gib: float, *, is_needed: bool) -> Finding:
    found = f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"
    if gib >= MIN_SHM_GIB:
        return Finding("/dev/shm", found)
    wanted = f"at least {MIN_SHM_GIB:.0f} GiB for processes that exchange tensors (several GPUs, vLLM)"
    command = "sudo mount -o remount,size=8G /dev/shm   # in a container: docker run --shm-size=8g ..."
    return Finding("/dev/shm", found, "problem" if is_needed else "note", wanted, command)


def _disk(subject: str, free: float) -> Finding:
    found = f"{free:.1f} GiB free"
    if "runs" in subject and free < MIN_RUNS_GIB:
        wanted = f"at least {MIN_RUNS_GIB:.0f} GiB: a checkpoint that does not fit ends its run (exit code 8)"
        command = "du -sh outputs/*/* | sort -h   # and remove, or output_dir=/a/larger/disk"
        return Finding(subject, found, "problem", wanted, command)
    if "models" in subject and free < MIN_MODELS_GIB:
        wanted = f"{MIN_MODELS_GIB:.0f} GiB hold Qwen2.5-7B; smaller models need less"
        return Finding(subject, found, "note", wanted, "export HF_HOME=/a/larger/disk")
    return Finding(subject, found)
