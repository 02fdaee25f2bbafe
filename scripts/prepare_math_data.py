#!/usr/bin/env python
"""Prepare mathematics data: `python scripts/prepare_math_data.py --source openai/gsm8k --output outputs/data/gsm8k`."""

from __future__ import annotations

import sys

from tinyzero_trl.data.preparation import main
from tinyzero_trl.tasks.math import format_math

__all__ = ["format_math"]

if __name__ == "__main__":
    sys.exit(main(task="math"))
