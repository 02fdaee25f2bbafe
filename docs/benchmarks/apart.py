"""Each measurement in a process of its own, so that peak memory and warm caches are of one trainer alone."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

# trl's import takes seconds: once, in the process that all measuring processes are forked from.
IMPORTED_ONCE = ["tinyzero_trl.trainer", "datasets", "watch"]


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `function(*arguments)`, computed in a new process whose standard output goes nowhere. Raises: RuntimeError."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"a measuring process ended with exit code {process.exitcode}") from None
    process.join()
    return result


def _send(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # progress lines; errors go to stderr
    sender.send(function(*arguments))
