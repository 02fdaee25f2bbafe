"""What a resumed run needs beyond transformers' checkpoint, collected from every idea of the trainer that has some."""

from __future__ import annotations

from typing import Any

from trl import GRPOTrainer


class ResumableState(GRPOTrainer):
    """The innermost of our classes: `resume_state` and `load_resume_state` are cooperative, each class adds its own."""

    def resume_state(self) -> dict[str, Any]:
        """This process's state as nested dicts and lists of tensors, numbers, text and None."""
        return {}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take back what `resume_state` gave."""
