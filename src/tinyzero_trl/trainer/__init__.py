"""The one subclass of TRL's GRPOTrainer, made of one idea a file, each on a seam that TRL has kept stable."""

from tinyzero_trl.trainer.trainer import TinyZeroTrainer

__all__ = ["TinyZeroTrainer"]
