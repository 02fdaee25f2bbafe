"""Makes the shipped tiny models: problems with synthetic thoughts, a tokenizer and random weights, trained by SFT in stages.

rows of tasks ─> *_traces.py (a thought for each, with bad habits that GRPO can change) ─> stages.py (Text, dealt into batches) ─┐
scratch.py (tokenizer, random Llama), or a model to continue from ──────────────────────────────────────────────────────────────┴─> sft.py
"""

from tinyzero_trl.pretraining.stages import Text, dealt, examples, problems, stage, stages_of, start, tokenizer_for

__all__ = [
    "Text",
    "dealt",
    "examples",
    "problems",
    "stage",
    "stages_of",
    "start",
    "tokenizer_for",
]
