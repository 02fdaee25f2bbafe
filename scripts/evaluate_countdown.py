"""Evaluate on Countdown: python scripts/evaluate_countdown.py --model_path outputs/countdown/RUN."""

import sys

from tinyzero_trl.evaluation import main

if __name__ == "__main__":
    sys.exit(main(task="countdown"))
