#!/usr/bin/env python
"""Prepare multiplication data: `python scripts/prepare_multiplication_data.py --num_train 32768 --num_test 4096`."""

from __future__ import annotations

from tinyzero_trl import prepare
from tinyzero_trl.tasks.multiplication import TASK

if __name__ == "__main__":
    prepare.main(TASK, lambda row: str(row["a"] * row["b"]), source="generated")
