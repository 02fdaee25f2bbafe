"""Plugin that vLLM runs in each of its processes if this package is installed (entry point group `vllm.general_plugins`)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

ENGINE = "file"
"""Name of our weight transfer in vLLM's registry: `--weight-transfer-config '{"backend": "file"}'`."""
DIE_WITH_PARENT = "TINYZERO_DIE_WITH_PARENT"
PR_SET_PDEATHSIG = 1


def register() -> None:
    """Register the weight transfer `file`; in a server that we started, also end with the parent process. May be called again."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if ENGINE not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            ENGINE, "tinyzero_trl.generation.transfer", "FileWeightTransferEngine"
        )
    if os.environ.get(DIE_WITH_PARENT) == "1":
        die_with_parent()
        _ask_for_amx()


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, for whatever reason. Does nothing except on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _ask_for_amx() -> None:
    # vLLM 0.31's worker uses AMX tiles for bfloat16 attention without the kernel's permission, and dies of SIGILL at
    # the first token. The first call of torch's own AMX code gets the permission.
    import torch

    from tinyzero_trl.config import has_gpu

    if not has_gpu() and torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
