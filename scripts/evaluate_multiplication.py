"""Evaluate on Multiplication: python scripts/evaluate_multiplication.py --model_path outputs/multiplication/RUN."""

import sys

from tinyzero_trl.evaluation import main

if __name__ == "__main__":
    sys.exit(main(task="multiplication"))
