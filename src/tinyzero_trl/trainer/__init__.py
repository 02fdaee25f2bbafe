"""The trainer: TRL's GRPOTrainer, each of its seams overridden once.

    rows -> trainer.py -> a run folder: metrics.jsonl, rollouts/*.parquet, checkpoint-*/

trainer.py is the story in the order of a step. The files beside it are its parts, which know no trainer: functions on tensors and
records, and small objects whose `state()` goes into a checkpoint and comes back with `load(state)`.
"""

from tinyzero_trl.trainer.trainer import TinyZeroTrainer

__all__ = ["TinyZeroTrainer"]
