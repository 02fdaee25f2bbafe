"""Tests that need an NVIDIA GPU: skipped elsewhere, with the reason, before anything heavy is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
# The proof is a script, not a package.
sys.path.insert(0, str(FOLDER))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if item.get_closest_marker("gpu")]
    if not mine:
        return
    from gpu_proof import why_no_gpu

    if why := why_no_gpu():
        for item in mine:
            item.add_marker(pytest.mark.skip(reason=why))
