"""Evaluate on mathematics: python scripts/evaluate_math.py --model_path outputs/math/RUN --benchmarks math500,aime24."""

import sys

from tinyzero_trl.evaluation import main

if __name__ == "__main__":
    sys.exit(main(task="math"))
