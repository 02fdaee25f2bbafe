"""A tokenizer and a decoder made from nothing: what `sft.py` trains where no base model is to be had."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
# Shorter pieces of a prompt (`, `, ` + `) occur in thoughts too and are left to BPE.
MIN_SENTENCE_LENGTH = 8


def fixed_sentences(prompts: Sequence[str]) -> list[str]:
    """The texts between the numbers of a prompt that stand in every one of the prompts, in order of first occurrence."""
    pieces = [re.split(r"\d+", prompt) for prompt in prompts]
    shared = set.intersection(*map(set, pieces))
    return [piece for piece in dict.fromkeys(pieces[0]) if piece in shared and len(piece) >= MIN_SENTENCE_LENGTH]


def train_tokenizer(
    texts: Sequence[str], *, sentences: Sequence[str], vocab_size: int, max_length: int
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every digit is one token and each of the given sentences is one.

    The sentences are what a prompt says every time, so a prompt costs 20 tokens and not 200. Digits and line starts are cut before merging; a
    newline joins what follows it (`\\n</think>`), so a prompt that ends in `<think>` is tokenized alike with and without a completion behind it.
    Every byte is in the alphabet: any text can be encoded.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
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
    """A randomly initialised Llama of the given shape (`hidden_size`, `intermediate_size`, ...) with tied embeddings.

    Llama and not Qwen2: `AutoTokenizer` replaces the tokenizer of any `model_type: qwen2` folder by its own (transformers 5.17).
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
