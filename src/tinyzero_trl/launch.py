"""Starts an entry point as `accelerate launch` does, and keeps its exit code and its signals."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tinyzero_trl.config import CONFIG_VARIABLE, check_to_launch, read_accelerate_config
from tinyzero_trl.installation import PACKAGE
from tinyzero_trl.threads import share_cores

NODES = {
    "PET_NNODES": "--num_machines",
    "PET_NODE_RANK": "--machine_rank",
    "PET_MASTER_ADDR": "--main_process_ip",
    "PET_MASTER_PORT": "--main_process_port",
}
"""Option of accelerate by the environment variable that torchrun reads; Kubeflow sets these variables, and accelerate ignores them."""
PR_SET_PDEATHSIG = 1
"""Number of Linux's prctl that sets the signal for a process whose parent is gone."""
SECONDS_OF_SMI = 20
"""Seconds after which nvidia-smi is taken to hang, as it does with a broken driver."""


def end_with_launcher() -> None:
    """Have the kernel send SIGTERM to this process when the launcher that started it is gone; Linux only.

    SIGKILL to a launcher would otherwise leave its run behind, unnoticed. On SIGTERM the run saves a checkpoint.
    """
    # The launcher sets this variable. Without a launcher the parent may be a shell, which a run under nohup outlives.
    if sys.platform != "linux" or "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def visible_gpus() -> list[str]:
    """GPUs that a process started here may use, named as in CUDA_VISIBLE_DEVICES; no library is imported or initialised."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SECONDS_OF_SMI)
    except subprocess.TimeoutExpired:
        return []
    return gpus_of(listed.stdout, os.environ.get("CUDA_VISIBLE_DEVICES")) if listed.returncode == 0 else []


def gpus_of(listing: str, mask: str | None) -> list[str]:
    """GPUs of `nvidia-smi -L` that a mask leaves. A mask names indices or beginnings of UUIDs; as in CUDA, the first invalid name ends it.

    >>> two = "GPU 0: NVIDIA RTX A500 Laptop GPU (UUID: GPU-aa-1)\\nGPU 1: NVIDIA H100 (UUID: GPU-ab-2)\\n  MIG 1g.10gb Device 0: (UUID: MIG-c-3)"
    >>> gpus_of(two, None), gpus_of(two, "1"), gpus_of(two, "GPU-ab,0"), gpus_of(two, "MIG-c"), gpus_of(two, "1,7,0"), gpus_of(two, "")
    (['0', '1'], ['1'], ['GPU-ab', '0'], ['MIG-c'], ['1'], [])
    """
    indices = re.findall(r"^GPU (\d+):", listing, re.MULTILINE)
    if mask is None:
        return indices
    uuids = re.findall(r"\(UUID: ((?:GPU|MIG)-[^)]+)\)", listing)
    chosen: list[str] = []
    for name in (name.strip() for name in mask.split(",")):
        is_uuid = name[:4] in ("GPU-", "MIG-") and sum(uuid.startswith(name) for uuid in uuids) == 1
        if not is_uuid and name not in indices:
            break
        chosen.append(name)
    return chosen


def launch(program: str, words: Sequence[str], *, config: Path, num_processes: int | None = None) -> int:
    """Run `program`.py on `words` as `accelerate launch --config_file config` does; returns the exit code of the program.

    The command itself turns every exit code into 1, prints its own traceback below the program's one clear line, and leaves the
    program behind when it gets a signal. This function calls accelerate's own functions and avoids all three.
    num_processes: on this machine; None takes the number in the config, which counts all machines.
    The number of machines, the rank of this one, and address and port of the first come from environment variables (NODES).
    Raises: ValueError if only some of these variables are set.
    """
    check_to_launch()
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    num_machines, options = _nodes()
    options += ["--config_file", str(config)]
    if num_processes is not None:
        options.append(f"--num_processes={num_processes * num_machines}")
    arguments = launch_command_parser().parse_args([*options, str(PACKAGE / f"{program}.py"), *words])
    os.environ[CONFIG_VARIABLE] = str(config.absolute())
    share_cores(num_processes or max(1, (read_accelerate_config(config).get("num_processes") or 1) // num_machines))
    # torch's elastic agent, which starts two or more processes, replaces these handlers by its own.
    previous = {number: signal.signal(number, _pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        return _exit_code(error.returncode)
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _nodes() -> tuple[int, list[str]]:
    """The number of machines of this run, and the options of accelerate that describe them."""
    given = {name: os.environ[name] for name in NODES if os.environ.get(name)}
    count = given.get("PET_NNODES", "1")
    if not count.isdigit() or int(count) < 1:
        raise ValueError(f"PET_NNODES must be a number of machines, got {count!r}")
    if int(count) == 1:
        return 1, []
    missing = [name for name in NODES if name not in given]
    if missing:
        # Without a rank every machine would take itself for the first and wait for the others for ever.
        raise ValueError(f"PET_NNODES is {count}, and {', '.join(missing)} is not set; see docs/scale.md")
    if not given["PET_NODE_RANK"].isdigit() or int(given["PET_NODE_RANK"]) >= int(count):
        raise ValueError(
            f"PET_NODE_RANK={given['PET_NODE_RANK']} must be a machine's number, from 0 to {int(count) - 1}"
        )
    return int(count), [f"{option}={given[name]}" for name, option in NODES.items()]


def _pass_on(number: int, frame: FrameType | None) -> Any:
    """Send a signal on to the program, except SIGINT: Ctrl-C in a terminal reaches the program by itself."""
    import psutil

    if number != signal.SIGINT:
        for child in psutil.Process().children():
            child.send_signal(number)


def _exit_code(code: int) -> int:
    """The exit code as a shell has it: 128 + n for a process that signal n ended, which Python calls -n."""
    return 128 - code if code < 0 else code
