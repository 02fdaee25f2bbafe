#!/usr/bin/env python
"""Prepare Countdown data: `python scripts/prepare_countdown_data.py --source rows.parquet --output outputs/data/countdown`."""

from __future__ import annotations

from tinyzero_trl import prepare
from tinyzero_trl.tasks.countdown import HUB_SOURCE, TASK, format_countdown, solve

__all__ = ["format_countdown"]

if __name__ == "__main__":
    prepare.main(TASK, lambda row: solve(row["nums"], row["target"]), source=HUB_SOURCE)
