"""Compares two answers by math-verify and sympy, in a worker process (`workers`) with limits of processor time and memory.

Only workers call it, and slow libraries are imported in functions. No sympy object is converted to text, sent or shown: sympy's
printer may hang or raise even if the comparison does not.
"""

from __future__ import annotations

import logging
import os
import signal
from functools import lru_cache
from typing import Any

from tinyzero_trl.rewards import prepare

RELATIVE = 1e-6
"""Largest relative difference of two equal numbers. math-verify compares six decimals, but 1e-7 is not 2e-7."""


class UndecidedError(Exception):
    """The comparison gave no result: it took too long, its workers died, or the library failed."""


def prepare_worker(parent: int, memory_gib: float) -> None:
    """Import slow libraries before the first time limit, and remove secrets from the environment before a model's text is read."""
    import math_verify  # noqa: F401

    os.environ.clear()
    prepare(parent, memory_gib)


def compare_within(gold: str, answer: str, cpu_seconds: float) -> tuple[bool, bool]:
    """`compare`, but SIGPROF kills the process after `cpu_seconds` of processor time.

    The limit is processor time, not the clock: a verdict must not depend on what else the machine does.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        return compare(gold, answer)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def compare(gold: str, answer: str) -> tuple[bool, bool]:
    """(True if the answer is an expression, True if it equals the gold), by math-verify. Both texts have no delimiters.

    A gold that math-verify cannot read equals nothing.
    Raises: UndecidedError if the library fails or runs out of memory.
    """
    from math_verify import verify
    from sympy import nan, zoo

    # It would warn that it has no time limit of its own; this process is killed instead.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    try:
        parsed = _parsed(answer)
        if not parsed:
            return False, False
        expected = _parsed(gold)
        if any(part.has(nan, zoo) for part in (*expected, *parsed)):
            return True, False  # for sympy 5/0 equals 7/0, and it reads `5:00` as 5/0
        if not expected:
            return True, False
        if _are_numbers(expected[0], parsed[0]) and _is_zero(expected[0]):
            return True, _is_zero(parsed[0])  # math-verify calls `0` and `46-46` different
        is_equal = verify(expected, parsed, strict=True, timeout_seconds=None, raise_on_error=True)
        return True, (is_equal and not _is_far(expected[0], parsed[0])) or _is_same(expected[0], parsed[0])
    except UndecidedError:
        raise
    except Exception as error:  # sympy may raise anything on a model's text: RecursionError, AttributeError
        raise UndecidedError(f"math-verify raised {type(error).__name__} on {answer[:100]!r}") from None


@lru_cache(maxsize=1024)
def _parsed(text: str) -> list[Any]:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Its defaults, but it must not remove units: it would read `3t` as `3`. `normal_form` has removed the real ones.
    spelled = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    config = LatexExtractionConfig(normalization_config=spelled)
    found: list[Any] = parse(f"${text}$", extraction_config=[config], fallback_mode="no_fallback", parsing_timeout=None)
    if not found:
        _refuse_exhausted(text)
    return [_with_unit(part) for part in found]


def _with_unit(part: Any) -> Any:
    """`part` with `i` as the imaginary unit, and without UnevaluatedExpr, which keeps `\\gcd(4,6)` from being 2."""
    from sympy import Basic, I, MatrixBase, UnevaluatedExpr

    if not isinstance(part, Basic | MatrixBase):
        return part
    for letter in [symbol for symbol in part.free_symbols if symbol.name == "i"]:
        part = part.subs(letter, I)
    return part.replace(UnevaluatedExpr, lambda inside: inside) if part.has(UnevaluatedExpr) else part


def _refuse_exhausted(text: str) -> None:
    """Raises: UndecidedError if `text` was not read because memory or stack ran out, which math-verify reports as unreadable."""
    from latex2sympy2_extended import latex2sympy

    try:
        latex2sympy(text)
    except (MemoryError, RecursionError) as error:
        raise UndecidedError(f"reading ended in {type(error).__name__} on {text[:100]!r}") from None
    except Exception:  # not mathematics, as math-verify reported
        return


def _are_numbers(a: Any, b: Any) -> bool:
    from sympy import Expr

    return isinstance(a, Expr) and isinstance(b, Expr) and bool(a.is_number) and bool(b.is_number)


def _is_zero(number: Any) -> bool:
    return bool(number.equals(0))


def _is_same(a: Any, b: Any) -> bool:
    """True for some equal expressions that math-verify calls different: `7^{0.2}` and `7^{1/5}`, `1*x` and `x`."""
    from sympy import Expr, Float, Symbol

    if _are_numbers(a, b):
        return (a.has(Float) or b.has(Float)) and not _is_far(a, b, within=1e-12)
    return (
        isinstance(a, Expr)
        and isinstance(b, Expr)
        and (isinstance(a, Symbol) or isinstance(b, Symbol))
        and (a - b).expand() == 0
    )


def _is_far(a: Any, b: Any, *, within: float = RELATIVE) -> bool:
    """True if both are numbers whose relative difference is above `within`. sympy's floats have no limit at 1e308 or 1e-308."""
    if not _are_numbers(a, b):
        return False
    x, y = a.doit().evalf(15), b.doit().evalf(15)
    return bool(abs(x - y).evalf(15) > within * max(abs(x).evalf(15), abs(y).evalf(15)))
