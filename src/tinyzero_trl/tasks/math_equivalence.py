"""What a worker process of `math_workers` runs: math-verify and sympy, within limits of processor time and memory.

Nothing of it is imported by the trainer. No sympy object is turned into text, sent or shown: sympy's printer may hang for ever
or raise where the comparison itself does not.
"""

from __future__ import annotations

import logging
import os
import signal
from functools import lru_cache
from typing import Any

from tinyzero_trl.worker_process import prepare

RELATIVE = 1e-6
"""Two numbers that math-verify calls equal must be this near, relatively: it compares six decimals, and 1e-7 is not 2e-7."""


def prepare_worker(parent: int, memory_gib: float) -> None:
    """Load what is slow to load before the first limit counts; a model's text never meets a secret."""
    import math_verify  # noqa: F401

    os.environ.clear()
    prepare(parent, memory_gib)


def compare_within(gold: str, answer: str, cpu_seconds: float) -> tuple[bool, bool]:
    """`compare`; the process dies of SIGPROF where it takes more than `cpu_seconds` of its processor.

    Processor time and not the clock: a verdict must not depend on what else the machine does.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        return compare(gold, answer)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def compare(gold: str, answer: str) -> tuple[bool, bool]:
    """(the answer is an expression, and it equals the gold), by math-verify. Both are bare: no delimiters."""
    from math_verify import verify

    # It warns that it keeps no time limit of its own: this process is killed instead.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    try:
        parsed = _parsed(answer)
        if not parsed:
            return False, False
        expected = _parsed(gold)
        is_equal = bool(expected) and verify(expected, parsed, strict=True, timeout_seconds=None)
        return True, is_equal and not _is_far(expected[0], parsed[0])
    except Exception:  # sympy raises what it likes on what a model writes: RecursionError, MemoryError, AttributeError
        return False, False


@lru_cache(maxsize=1024)
def _parsed(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    found: list[Any] = parse(
        f"${text}$", extraction_config=[LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )
    return found


def _is_far(a: Any, b: Any) -> bool:
    """Both are real numbers, and they differ by more than `RELATIVE`."""
    from sympy import Expr

    if not (isinstance(a, Expr) and isinstance(b, Expr) and a.is_number and b.is_number):
        return False
    x, y = complex(a.evalf(15)), complex(b.evalf(15))
    return abs(x - y) > RELATIVE * max(abs(x), abs(y))
