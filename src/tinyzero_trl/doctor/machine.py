"""The machine judged: devices, threads, shared memory, disks."""

from __future__ import annotations

from collections.abc import Iterator

from tinyzero_trl.doctor.findings import Finding
from tinyzero_trl.doctor.host import Host

MIN_SHM_GIB = 1.0
"""NCCL and vLLM's workers exchange data there; Docker gives 64 MiB unless told otherwise."""
MIN_RUNS_GIB = 2.0
"""A tiny run with its checkpoints is 0.2 GiB; below this no run is safe from a full disk."""
MIN_MODELS_GIB = 20.0
"""Qwen2.5-7B is 15 GiB."""


def machine_findings(host: Host, *, has_vllm: bool = False) -> Iterator[Finding]:
    """Rows about the machine. has_vllm: whether a vLLM is installed, which needs shared memory also with one GPU."""
    yield from _devices(host)
    yield Finding("memory", f"{host.memory_gib:.0f} GiB")
    yield from _threads(host)
    yield from _shared_memory(host, has_vllm=has_vllm)
    for use, free in host.free_gib.items():
        yield _disk(use, free)


def _devices(host: Host) -> Iterator[Finding]:
    if host.driver_fault:
        yield Finding(
            "NVIDIA driver",
            host.driver_fault,
            "problem",
            "nvidia-smi is there and does not answer: driver and kernel module differ after an update, or the container was started without GPUs",
            "sudo reboot   # in a container: docker run --gpus all ...",
        )
    elif not host.gpus:
        yield Finding("devices", "no NVIDIA GPU: runs on the CPU")
    for index, gpu in enumerate(host.gpus):
        yield Finding(f"GPU {index}", f"{gpu.name}, {gpu.memory_gib:.0f} GiB, driver {gpu.driver}")
    visible = host.environment.get("CUDA_VISIBLE_DEVICES")
    if host.gpus and visible is not None and visible.strip() in ("", "-1"):
        yield Finding(
            "CUDA_VISIBLE_DEVICES", repr(visible), "note", "hides every GPU from a run", "unset CUDA_VISIBLE_DEVICES"
        )


def _threads(host: Host) -> Iterator[Finding]:
    asked = host.environment.get("OMP_NUM_THREADS")
    cores = f"{host.num_cores} cores"
    if asked is None:
        yield Finding("CPU", f"{cores}; OMP_NUM_THREADS is not set (`tinyzero train` shares the cores out itself)")
    elif not asked.isdigit() or int(asked) < 1:
        wanted = "a whole number from 1 on; libraries ignore any other and start a thread for every core they see"
        yield Finding("CPU", f"{cores}, OMP_NUM_THREADS={asked!r}", "problem", wanted, _set_threads(host))
    elif int(asked) > host.num_cores:
        wanted = f"at most {host.num_cores}: threads that share a core run ten times slower than one that has it"
        yield Finding("CPU", f"{cores}, OMP_NUM_THREADS={asked}", "problem", wanted, _set_threads(host))
    else:
        yield Finding("CPU", f"{cores}, OMP_NUM_THREADS={asked}")


def _set_threads(host: Host) -> str:
    return f"export OMP_NUM_THREADS={host.num_cores}"


def _shared_memory(host: Host, *, has_vllm: bool) -> Iterator[Finding]:
    if host.shm_gib is None:
        return
    found = f"{host.shm_gib:.1f} GiB" if host.shm_gib >= 1 else f"{host.shm_gib * 1024:.0f} MiB"
    if host.shm_gib >= MIN_SHM_GIB:
        yield Finding("/dev/shm", found)
        return
    is_needed = len(host.gpus) > 1 or has_vllm
    wanted = f"at least {MIN_SHM_GIB:.0f} GiB for processes that exchange tensors (several GPUs, vLLM)"
    command = "sudo mount -o remount,size=8G /dev/shm   # in a container: docker run --shm-size=8g ..."
    yield Finding("/dev/shm", found, "problem" if is_needed else "note", wanted, command)


def _disk(use: str, free: float) -> Finding:
    found = f"{free:.1f} GiB free"
    if use.startswith("runs") and free < MIN_RUNS_GIB:
        wanted = f"at least {MIN_RUNS_GIB:.0f} GiB: a checkpoint that does not fit ends its run (exit code 8)"
        return Finding(
            f"disk for {use}",
            found,
            "problem",
            wanted,
            "du -sh outputs/*/* | sort -h   # and remove, or output_dir=/a/larger/disk",
        )
    if use.startswith("models") and free < MIN_MODELS_GIB:
        wanted = f"{MIN_MODELS_GIB:.0f} GiB hold Qwen2.5-7B; smaller models need less"
        return Finding(f"disk for {use}", found, "note", wanted, "export HF_HOME=/a/larger/disk")
    return Finding(f"disk for {use}", found)
