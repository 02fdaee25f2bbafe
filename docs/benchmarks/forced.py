"""Rollouts that are forced on a trainer: a small model, and completions whose lengths and rewards are drawn, not generated.

Axes: B = rows of an optimizer step, in groups of NUM_GENERATIONS of the same prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

NUM_GENERATIONS = 8
NUM_PROMPTS = 8
"""Rows of an optimizer step: 64 rows, as 8 micro-batches of 8 in TRL."""
PROMPT_TOKENS = 150
"""Before scaling."""
EOS, PAD = 0, 1
WARM_UP_TOKENS = 16
"""Length of every row of the first window, which is not measured."""
SAMPLING_NOISE = 0.1
"""Standard deviation of (sampler's - trainer's) log-probability of a token, in nats; large, so that the ratio matters."""


@dataclass(frozen=True)
class Lengths:
    """Completion lengths in tokens: lognormal, cut off at a cap. Source: trl-1.16.md, section 4.1."""

    median: int
    sigma: float
    cap: int

    def scale(self, longest: int) -> float:
        """The factor that brings the cap down to `longest` tokens, 1 where it is below; sigma and cap / median stay."""
        return min(1.0, longest / self.cap)

    def draw(self, rng: np.random.Generator, size: int, *, scale: float) -> list[int]:
        """`size` lengths, scaled."""
        drawn = self.median * scale * np.exp(self.sigma * rng.standard_normal(size))
        return [int(length) for length in np.clip(np.rint(drawn), 1, round(self.cap * scale))]


DISTRIBUTIONS = {
    "short": Lengths(150, 0.5, 512),
    "medium": Lengths(350, 0.7, 1024),
    "long": Lengths(600, 0.9, 4096),
    "r1": Lengths(1500, 0.9, 8192),
}


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    layers: int = 4
    hidden: int = 256
    heads: int = 4
    vocabulary: int = 1024


@dataclass(frozen=True)
class Window:
    """The batch of one optimizer step, or, with mu > 1, of the steps that share rollouts; row i is of prompt i // 8."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    logprobs: list[list[float]]
    rewards: list[float]


def window(
    lengths: list[int], *, prompt_tokens: int, num_constant: int, vocabulary: int, rng: np.random.Generator
) -> Window:
    """Random tokens of the given lengths (in B); `num_constant` groups earn all the same, in the others 1 to 7 rows earn.

    Rewards are 0 and 1, so that TRL's mean of a constant group is exact and both trainers have the same advantages.
    """
    num_groups = len(lengths) // NUM_GENERATIONS
    earning = rng.integers(1, NUM_GENERATIONS, num_groups)
    earning[rng.permutation(num_groups)[:num_constant]] = 0
    rewards = [float(place < num) for num in earning for place in rng.permutation(NUM_GENERATIONS)]
    prompts = [rng.integers(2, vocabulary, prompt_tokens).tolist() for _ in range(num_groups)]
    completions = [[*rng.integers(2, vocabulary, length - 1).tolist(), EOS] for length in lengths]
    expected = -math.log(vocabulary)  # what a model with random weights gives about every token
    logprobs = [rng.normal(expected, SAMPLING_NOISE, length).tolist() for length in lengths]
    return Window([prompts[row // NUM_GENERATIONS] for row in range(len(lengths))], completions, logprobs, rewards)


def rollout_func(windows: list[Window]) -> Callable[..., dict[str, Any]]:
    """TRL's `rollout_func` that gives what was drawn: a function of the prompt (its number) and the sample alone."""

    def forced(prompts: list[str], trainer: Any) -> dict[str, Any]:
        num_seen: Counter[str] = Counter()
        found: dict[str, list[Any]] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "earned": []}
        for prompt in prompts:
            part = windows[int(prompt) // NUM_PROMPTS]
            row = int(prompt) % NUM_PROMPTS * NUM_GENERATIONS + num_seen[prompt]
            num_seen[prompt] += 1
            found["prompt_ids"].append(part.prompt_ids[row])
            found["completion_ids"].append(part.completion_ids[row])
            found["logprobs"].append(part.logprobs[row])
            found["earned"].append(part.rewards[row])
        return found

    return forced


def earned_reward(earned: list[float], **columns: Any) -> list[float]:
    """The reward that was drawn with the completion."""
    return earned


def new_model(shape: Shape, *, max_length: int, seed: int = 0) -> LlamaForCausalLM:
    """A Llama with random weights in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=3 * shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=max_length,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=PAD,
            tie_word_embeddings=True,
        )
    )


def new_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are numbers; the trainers only decode with it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": EOS, "<pad>": PAD} | {str(token): token for token in range(2, vocabulary)}
    core = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", padding_side="left")
