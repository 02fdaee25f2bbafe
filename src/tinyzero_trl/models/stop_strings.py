"""Stop strings: text at which a completion ends, beside the tokens that end it.

The rule is vLLM's: the newly generated text, without special tokens, is searched after each token, and the token in which a stop string becomes
complete is the last one. It is kept whole, also where more text follows in it. What the prompt or a prefill says does not count.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from tinyzero_trl.failures import ConfigError

if TYPE_CHECKING:
    import torch

MARGIN = 8
"""Tokens read in front of a stop string's own, for tokenizers that treat the first token of a text differently."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer makes of a part of a character."""


def is_truncated(ids: Sequence[int], *, ends: Container[int], stop: StopStrings | None) -> bool:
    """Whether a completion ran into the token limit: it ends neither with a token of `ends` nor with a stop string."""
    if not ids:
        return True
    return ids[-1] not in ends and (stop is None or not stop.is_complete(ids))


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """The tokens that `skip_special_tokens` leaves out of a text, by id; more than `all_special_tokens`, which has the named ones."""
    added = {token: entry.content for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return {**dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)), **added}


def check_stop(texts: Sequence[str], *, name: str, tokenizer: Any = None) -> None:
    """Stop strings by themselves; with a tokenizer, whether text shows them. Raises: ConfigError."""
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
    """Stop strings as a tokenizer spells them: whether a completion's last token completes one."""

    def __init__(self, texts: Sequence[str], tokenizer: Any):
        """texts: at least one, none empty (`check_stop`)."""
        self.texts = tuple(texts)
        self._tokenizer = tokenizer
        self._special_ids = special_tokens(tokenizer)
        # A token stands for a byte at least, so a stop string lies within as many tokens as it has bytes.
        self._num_tokens = max(len(text.encode()) for text in texts) + MARGIN
        self._closing: torch.Tensor | None = None

    def is_complete(self, ids: Sequence[int]) -> bool:
        """Whether a stop string ends in the last of these tokens, given that none ended before it."""
        kept: list[int] = []
        for token in reversed(ids[-2 * self._num_tokens :]):
            if len(kept) == self._num_tokens:
                break
            if token not in self._special_ids:
                kept.append(token)
        text = self._tokenizer.decode(kept[::-1], skip_special_tokens=True)
        return any(stop in text for stop in self.texts)

    def closing(self, vocabulary_size: int, device: torch.device | str) -> torch.Tensor:
        """Tokens that may complete a stop string, as a mask [vocabulary_size]: those with the last character of one, or a part of a character.

        Few tokens of a completion are such, so `is_complete` is asked rarely.
        """
        import torch

        if self._closing is None or len(self._closing) != vocabulary_size:
            num_known = min(len(self._tokenizer), vocabulary_size)
            spelt = self._tokenizer.batch_decode([[token] for token in range(num_known)])
            ends = {REPLACEMENT, *(text[-1] for text in self.texts)}
            # A blank alone may be spelt as nothing (SentencePiece).
            known = [not text or not ends.isdisjoint(text) for text in spelt]
            self._closing = torch.tensor(known + [False] * (vocabulary_size - num_known))
        self._closing = self._closing.to(device)
        return self._closing
