#!/usr/bin/env python
"""Prepare Countdown data: `python scripts/prepare_countdown_data.py --source rows.parquet --output outputs/data/countdown`."""

from __future__ import annotations

import sys

from tinyzero_trl.data.preparation import main
from tinyzero_trl.tasks.countdown import format_countdown

__all__ = ["format_countdown"]

if __name__ == "__main__":
    sys.exit(main(task="countdown"))
