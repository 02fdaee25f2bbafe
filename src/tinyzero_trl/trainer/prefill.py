"""Prompts that end in an open assistant turn, and prompts that bring their own bos token."""

from __future__ import annotations

from typing import Any

from trl import GRPOTrainer

from tinyzero_trl.models import prompts_ids


class Prefill(GRPOTrainer):
    """`_tokenize_prompts` that leaves a last assistant message open and never doubles bos; TRL's own otherwise."""

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        # TRL closes the assistant turn and opens a second one (add_generation_prompt=True always), and tokenises text
        # with special tokens although a rendered template may bring its own bos (trl#3520, trl#3853).
        bos = self.processing_class.bos_token
        if isinstance(prompts[0], str):
            is_ours = bool(bos) and any(prompt.startswith(bos) for prompt in prompts)
        else:
            is_ours = any(prompt[-1]["role"] == "assistant" for prompt in prompts)
        if not is_ours:
            return super()._tokenize_prompts(prompts)
        template = (
            {} if isinstance(prompts[0], str) else {"chat_template": self.chat_template, **self.chat_template_kwargs}
        )
        return prompts_ids(self.processing_class, prompts, **template), None, {}
