"""TinyZero-TRL: language models that learn to reason by reinforcement learning, on TRL."""

import logging

# peft imports bitsandbytes wherever it is installed, which on a CPU then warns that a faster product of 4-bit weights is not.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
