"""TinyZero-TRL: language models that learn to reason by reinforcement learning, on TRL."""

__version__ = "0.1.0"
