#!/usr/bin/env python
"""Prepare multiplication data: `python scripts/prepare_multiplication_data.py --num_train 32768 --num_test 4096`."""

from __future__ import annotations

import sys

from tinyzero_trl.data.preparation import main

if __name__ == "__main__":
    sys.exit(main(task="multiplication"))
