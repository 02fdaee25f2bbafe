"""Makes a tokenizer and a decoder with random weights, which `sft.py` trains if there is no base model to start from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
NUMBERS = {"digits": r"\d", "whole": r"( = )?\d+"}
"""The part of a number that is split from the text around it: each digit, or all of it, with the equals sign in front (a result is one token)."""
MIN_SENTENCE_LENGTH = 8
"""Fewest characters of a sentence that becomes one token: shorter pieces (`, `, ` + `) also occur in thoughts and are left to BPE."""


def fixed_sentences(prompts: Sequence[str]) -> list[str]:
    """The texts between the numbers of a prompt that all prompts share, in order of occurrence."""
    pieces = [re.split(r"\d+", prompt) for prompt in prompts]
    shared = set.intersection(*map(set, pieces))
    return [piece for piece in dict.fromkeys(pieces[0]) if piece in shared and len(piece) >= MIN_SENTENCE_LENGTH]


def train_tokenizer(
    texts: Sequence[str], *, sentences: Sequence[str], vocab_size: int, max_length: int, numbers: str = "digits"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which each digit, or each frequent number, and each of the given sentences is one token.

    All prompts have these sentences, so that a prompt takes 20 tokens instead of 200. Text is split at digits and line starts before
    merging, and a newline belongs to the text after it (`\\n</think>`), so that a prompt that ends in `<think>` has the same tokens with
    and without a completion. The alphabet has every byte, so that any text can be encoded.
    numbers: a key of `NUMBERS`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(NUMBERS[numbers]), "isolated"),
            pre_tokenizers.Split("\n", "merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(sentence, normalized=False) for sentence in sentences])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_llama(tokenizer: PreTrainedTokenizerFast, *, max_length: int, seed: int, **shape: int) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings in the given shape (`hidden_size`, `intermediate_size`, ...).

    It is not a Qwen2, because `AutoTokenizer` replaces the tokenizer of a folder with `model_type: qwen2` (transformers 5.17).
    """
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    return LlamaForCausalLM(config)
