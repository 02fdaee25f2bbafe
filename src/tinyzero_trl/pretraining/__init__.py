"""How the shipped tiny models were made: tokenizer and weights from nothing (`scratch`), texts (`*_traces`), `stages` of SFT."""

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
