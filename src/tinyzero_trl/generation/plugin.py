"""What vLLM runs in each of its processes where this package is installed (entry point group `vllm.general_plugins`)."""

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
    """Make `file` a weight transfer; in processes of a server of ours, end with the process above. May be called again."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if ENGINE not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            ENGINE, "tinyzero_trl.generation.transfer", "FileWeightTransferEngine"
        )
    if os.environ.get(DIE_WITH_PARENT) == "1":
        die_with_parent()
        _ask_for_amx()


def die_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, however that ends. Linux only; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _ask_for_amx() -> None:
    # vLLM 0.31's worker uses AMX tiles for bfloat16 attention without having asked the kernel for them, and dies of
    # SIGILL at the first token. The first call of torch's own AMX code asks.
    import torch

    from tinyzero_trl.config import has_gpu

    if not has_gpu() and torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
