"""GRPO in one file: a language model learns Countdown with torch and transformers alone, for people who want to read all of it.

    python docs/minimal_grpo.py --steps 20      # from the root of the repository, in the environment of `make install`

It prints the share of problems solved, step by step. Each step draws new problems, so none of them was trained on before:

    draw problems -> sample completions -> score them -> advantages -> loss -> optimizer step

Measured with seed 0 on one core of an AMD EPYC, in processor time because other work shared it; solved are test problems of three
numbers (1,022, temperature 1, at most 256 tokens, by scripts/evaluate_countdown.py on what --save wrote), with 95 % intervals:

    the shipped model       22.9 % [20.4, 25.6]
    --steps 20              79.9 % [77.4, 82.3]      5 minutes
    40 steps, the default   80.4 % [77.9, 82.7]     12 minutes

The method is that of recipes/countdown/grpo-tiny.yaml (Dr. GRPO, one update a batch, AdamW). tests/trainer/test_minimal_grpo.py holds it
to the real trainer: same seed, same batch, same update. That one adds processes, GPUs, vLLM, checkpoints and what else a recipe may ask for.

Axes: P prompts, G completions of each, N = P x G, B rows computed at once, L tokens of prompt and completion, V vocabulary.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from tinyzero_trl.tasks.countdown import equation, format_base, generate, split_of

TINY = Path(__file__).resolve().parents[1] / "src/tinyzero_trl/tiny"
NUM_GENERATIONS = 8  # completions of each problem
MAX_TOKENS = 256  # of a completion


def problems(seed: int) -> Iterator[dict[str, Any]]:
    """Training problems without end: three numbers of 1 to 99, a target of 10 to 100, the prompt and its prefill."""
    for row in generate(random.Random(seed), num_numbers=(3, 3), numbers=(1, 99), targets=(10, 100)):
        if split_of(row) == "train":
            yield {**row, **format_base(row)}


@torch.no_grad()
def sample(model: Any, prompt_ids: Sequence[list[int]], *, eos: int, draw: torch.Generator) -> list[list[int]]:
    """One completion of each prompt, drawn at temperature 1; it ends with `eos`, or is cut off after MAX_TOKENS tokens."""
    completions: list[list[int]] = [[] for _ in prompt_ids]
    active = list(range(len(prompt_ids)))
    # Padded on the left, so that the next token of every row stands in the last column.
    width = max(map(len, prompt_ids))
    ids_BL = torch.tensor([[eos] * (width - len(ids)) + ids for ids in prompt_ids])
    mask_BL = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids])
    cache = DynamicCache(config=model.config)
    for _ in range(MAX_TOKENS):
        positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)[:, -ids_BL.shape[1] :]
        logits_BLV = model(
            ids_BL,
            attention_mask=mask_BL,
            position_ids=positions_BL,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        ids_BL = torch.multinomial(logits_BLV[:, -1].softmax(-1), num_samples=1, generator=draw)
        for row, token in zip(active, ids_BL[:, 0].tolist(), strict=True):
            completions[row].append(token)
        # A row that has ended leaves the batch: completions differ in length tenfold.
        keep = (ids_BL[:, 0] != eos).nonzero()[:, 0]
        active = [active[index] for index in keep.tolist()]
        if not active:
            break
        cache.batch_select_indices(keep)
        ids_BL, mask_BL = ids_BL[keep], mask_BL[keep]
        mask_BL = torch.cat([mask_BL, torch.ones_like(ids_BL)], dim=1)
    return completions


def score(tokenizer: Any, rows: Sequence[dict[str, Any]], completion_ids: Sequence[list[int]]) -> torch.Tensor:
    """The reward of each completion: 1.0 where its response solves the row's problem, else 0.0; [N].

    A response is the prefill, with which the prompt ends, and the completion.
    """
    completions = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    return torch.tensor(
        [
            equation(row["prefill"] + completion, nums=row["nums"], target=row["target"])
            for row, completion in zip(rows, completions, strict=True)
        ]
    )


def advantages(rewards_PG: torch.Tensor) -> torch.Tensor:
    """Each completion's reward less the mean of its prompt's completions; [P, G].

    Where all completions of a prompt earn the same, it is exactly 0: the prompt teaches nothing. GRPO also divides by the
    standard deviation of the group; Dr. GRPO (arXiv 2503.20783) does not, as this weighs very easy and very hard problems up.
    """
    return rewards_PG - rewards_PG.mean(dim=1, keepdim=True)


def update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    advantages_N: torch.Tensor,
    *,
    epsilon: float = 0.2,
    max_grad_norm: float = 1.0,
    rows_at_once: int = 64,
) -> float:
    """One optimizer step on a batch; returns the norm of its gradient."""
    # Rows with advantage 0 have no gradient. Rows of like length together need little padding.
    rows = sorted(advantages_N.nonzero()[:, 0].tolist(), key=lambda n: len(prompt_ids[n]) + len(completion_ids[n]))
    for start in range(0, len(rows), rows_at_once):
        chunk = rows[start : start + rows_at_once]
        # Padded on the right: attention looks back alone, so no token sees the padding.
        width = max(len(prompt_ids[n]) + len(completion_ids[n]) for n in chunk)
        ids_BL = torch.zeros(len(chunk), width, dtype=torch.long)
        mask_BL = torch.zeros(len(chunk), width)
        for row, n in enumerate(chunk):
            ids = prompt_ids[n] + completion_ids[n]
            ids_BL[row, : len(ids)] = torch.tensor(ids)
            mask_BL[row, len(prompt_ids[n]) : len(ids)] = 1.0
        # The logits at a place are about the token after it.
        logps_BLV = model(ids_BL).logits[:, :-1].log_softmax(-1)
        logps_BL = logps_BLV.gather(-1, ids_BL[:, 1:, None])[..., 0]
        # The batch is used once, so the policy that sampled it is the policy now: the ratio is 1, its gradient is that of
        # `logps`, and clipping never acts. With a second step on the batch it would be exp(logps - logps of the sampling).
        ratio_BL = (logps_BL - logps_BL.detach()).exp()
        clipped_BL = ratio_BL.clamp(1 - epsilon, 1 + epsilon)
        advantages_B1 = advantages_N[chunk][:, None]
        gains_BL = torch.min(ratio_BL * advantages_B1, clipped_BL * advantages_B1) * mask_BL[:, 1:]
        # Divided by a constant, not by each completion's length as GRPO does: that would favour long wrong ones (Dr. GRPO).
        (-gains_BL.sum() / (len(completion_ids) * MAX_TOKENS)).backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return float(grad_norm)


def falling(optimizer: torch.optim.Optimizer, *, num_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A learning rate that falls linearly to 0 over `num_steps` steps."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(TINY), help="folder of a causal language model (the shipped tiny one)")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps (40)")
    parser.add_argument("--prompts", type=int, default=64, help="problems a step, with 8 completions each (64)")
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate, falling linearly to 0 (5e-4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of problems and samples (0)")
    parser.add_argument("--save", help="folder to save the trained model in, for scripts/evaluate_countdown.py")
    args = parser.parse_args()
    if args.steps < 1 or args.prompts < 1 or not 0 < args.lr < 1:
        parser.error("--steps and --prompts must be 1 or more, --lr between 0 and 1")
    if not (Path(args.model) / "config.json").is_file():
        parser.error(f"--model {args.model} is no folder of a model: it has no config.json")
    if args.save and (Path(args.save).exists() or not os.access(Path(args.save).absolute().parent, os.W_OK)):
        parser.error(f"--save {args.save} must be a new folder, in a folder that can be written to")

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    schedule = falling(optimizer, num_steps=args.steps)
    stream, draw = problems(args.seed), torch.Generator().manual_seed(args.seed)
    started = time.monotonic()
    for step in range(args.steps):
        # Each problem G times in a row; every problem is new, so the accuracy is that on problems never trained on.
        rows = [row for row in islice(stream, args.prompts) for _ in range(NUM_GENERATIONS)]
        prompt_ids = tokenizer([row["prompt"] for row in rows])["input_ids"]
        completion_ids = sample(model, prompt_ids, eos=tokenizer.eos_token_id, draw=draw)
        rewards_N = score(tokenizer, rows, completion_ids)
        advantages_N = advantages(rewards_N.view(-1, NUM_GENERATIONS)).flatten()
        grad_norm = update(model, optimizer, prompt_ids, completion_ids, advantages_N)
        schedule.step()
        length = sum(map(len, completion_ids)) / len(completion_ids)
        print(
            f"step {step + 1:3d}  solved {rewards_N.mean():6.1%}  tokens a completion {length:5.1f}  "
            f"gradient {grad_norm:.3f}  {time.monotonic() - started:4.0f} s",
            flush=True,
        )
    if args.save:
        model.save_pretrained(args.save)
        tokenizer.save_pretrained(args.save)


if __name__ == "__main__":
    main()
