"""Stop strings: texts that end a completion, in addition to the end tokens; and the rule for a truncated completion.

The rule is vLLM's: the generated text, without special tokens, is searched after each token. The token that completes a stop string is
the last one, and is kept whole even if it holds more text. The prompt and a prefill are not searched.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from tinyzero_trl.failures import ConfigError

if TYPE_CHECKING:
    import torch

MARGIN = 8
"""Tokens decoded in front of a stop string's own, because some tokenizers decode the first token of a text differently."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Character that a tokenizer decodes an incomplete character to."""


def is_truncated(ids: Sequence[int], *, ends: Container[int], stop: StopStrings | None) -> bool:
    """True if a completion ran into the token limit: it ends neither with a token of `ends` nor with a stop string."""
    if not ids:
        return True
    return ids[-1] not in ends and (stop is None or not stop.is_complete(ids))


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Text by id of all tokens that `skip_special_tokens` leaves out; `all_special_tokens` lists only those with a role, such as eos."""
    added = {token: entry.content for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return {**dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)), **added}


def check_stop(texts: Sequence[str], *, name: str, tokenizer: Any = None) -> None:
    """Refuse empty and repeated stop strings and, given a tokenizer, those with a special token.

    Raises: ConfigError.
    """
    if "" in texts:
        raise ConfigError(f'{name} holds an empty string, which would end every completion; write {name}=["</answer>"]')
    if len(set(texts)) < len(texts):
        raise ConfigError(f"{name} names a string twice: {list(texts)}")
    if tokenizer is None or not texts:
        return
    for text in texts:
        if special := next((token for token in special_tokens(tokenizer).values() if token in text), None):
            raise ConfigError(
                f"{name}: {text!r} holds the special token {special!r}, which no text shows; put its id into eos_token_id "
                "of the model's generation_config.json"
            )


class StopStrings:
    """Stop strings and the tokenizer that decodes completions: tells if the last token of one completes a stop string."""

    def __init__(self, texts: Sequence[str], tokenizer: Any):
        """Stop strings `texts`: at least one, none empty (`check_stop`)."""
        self.texts = tuple(texts)
        self._tokenizer = tokenizer
        self._special_ids = special_tokens(tokenizer)
        # A token has at least one byte, so a stop string spans no more tokens than it has bytes.
        self._num_tokens = max(len(text.encode()) for text in texts) + MARGIN
        self._closing: torch.Tensor | None = None

    def is_complete(self, ids: Sequence[int]) -> bool:
        """True if the last of these tokens completes a stop string, given that no earlier token did."""
        kept: list[int] = []
        for token in reversed(ids[-2 * self._num_tokens :]):
            if len(kept) == self._num_tokens:
                break
            if token not in self._special_ids:
                kept.append(token)
        text = self._tokenizer.decode(kept[::-1], skip_special_tokens=True)
        return any(stop in text for stop in self.texts)

    def closing(self, vocabulary_size: int, device: torch.device | str) -> torch.Tensor:
        """Mask [vocabulary_size] of tokens that can complete a stop string: they have its last character, or an incomplete one.

        Few tokens of a completion are among them, so `is_complete` is called rarely.
        """
        import torch

        if self._closing is None or len(self._closing) != vocabulary_size:
            num_known = min(len(self._tokenizer), vocabulary_size)
            spelt = self._tokenizer.batch_decode([[token] for token in range(num_known)])
            ends = {REPLACEMENT, *(text[-1] for text in self.texts)}
            # SentencePiece decodes a single blank to an empty text.
            known = [not text or not ends.isdisjoint(text) for text in spelt]
            self._closing = torch.tensor(known + [False] * (vocabulary_size - num_known))
        self._closing = self._closing.to(device)
        return self._closing
