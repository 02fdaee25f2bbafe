"""A pass in which a prompt is computed once for all its completions, and padding not at all.

The tokens of a chunk lie end to end in one row of N: every different prompt without its last token, then a segment for each completion,
which begins with that token and stops before its own last one, from which nothing is predicted. Everything in the model but attention
works on tokens one by one. Attention works on rows: keys, values and queries are copied into rows that begin with their prompt, rows of
like length together, so that its causal rule needs no mask.

The gradient is that of a padded pass up to rounding. The idea is that of Prefix Grouper (arXiv 2506.05433), which splits attention in two
instead, one part for the prompt and one for the completions.
Axes: see tinyzero_trl.algorithms; L = columns of a padded row, N = tokens of a pass, M = places in the rows of attention, D = heads x width.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tinyzero_trl.config import SHARING_ATTENTION
from tinyzero_trl.trainer.microbatches import chunk_sizes


@dataclass(frozen=True)
class Layout:
    """Tokens of a pass and their places in the rows of attention, [tensor of N or M, on the model's device]."""

    input_ids_N: torch.Tensor
    position_N: torch.Tensor
    """Position of each token in its row."""
    label_N: torch.Tensor
    """The token to predict after each; -100 where none is."""
    is_predicted_BT: torch.Tensor
    """True for the completion columns that have a segment's token; as many as the tokens behind the prompts', in the same order."""
    token_M: torch.Tensor
    """The token in each place; padding holds the first one, which no real token sees."""
    place_N: torch.Tensor
    """The place whose result each token takes: for a prompt's that of its first row."""
    other_places: torch.Tensor
    """Places of the prompts' tokens in the other rows, [prompt tokens, rows - 1]; where a prompt has fewer rows, any place."""
    has_other: torch.Tensor
    """True where `other_places` is one; the same shape, and one dimension more."""
    num_prefix: int
    """Tokens of the prompts, which come first."""
    rows: list[tuple[int, int]]
    """Rows and columns of each part of attention; the places of a part follow one another."""


def prompt_numbers(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor) -> torch.Tensor:
    """A number for each row, the same for equal prompts; [B]."""
    numbers: torch.Tensor = torch.unique(prompt_ids.masked_fill(prompt_mask == 0, -1), dim=0, return_inverse=True)[1]
    return numbers


def layout_of(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, *, num_prompt: int
) -> Layout:
    """The tokens of B padded rows, equal prompts of neighbours once. Arguments are [B, L]; labels are -100 outside completions.

    num_prompt: columns of the prompts, which are padded on the left; completions follow, padded on the right. A row without completion
    keeps one token, without label.
    """
    device, num_rows = input_ids.device, len(input_ids)
    prompt_ids, prompt_mask = input_ids[:, : num_prompt - 1], attention_mask[:, : num_prompt - 1].bool()
    num_prefix_B = prompt_mask.sum(1)
    num_segment_B = attention_mask[:, num_prompt:].sum(1).clamp(min=1)
    is_segment_BT = torch.arange(input_ids.shape[1] - num_prompt, device=device) < num_segment_B[:, None]

    # The last token of a prompt is in its rows' segments, and may differ.
    is_first_B = torch.ones(num_rows, dtype=torch.bool, device=device)
    is_first_B[1:] = ((prompt_ids[1:] != prompt_ids[:-1]) & prompt_mask[1:]).any(1) | (
        num_prefix_B[1:] != num_prefix_B[:-1]
    )
    row_B = torch.arange(num_rows, device=device)
    first_B = torch.where(is_first_B, row_B, 0).cummax(0).values
    is_prefix = prompt_mask & is_first_B[:, None]
    num_prefix = int(is_prefix.sum())

    # Cells of padded rows -> tokens.
    token_of_prefix = (is_prefix.flatten().cumsum(0) - 1).view_as(is_prefix)[first_B]
    token_of_segment = (is_segment_BT.flatten().cumsum(0) - 1 + num_prefix).view_as(is_segment_BT)

    # Cells -> places: rows in the order of their lengths, cut where padding costs more than another call.
    length_B = num_prefix_B + num_segment_B
    order_B = length_B.argsort(descending=True, stable=True)
    lengths = length_B[order_B].tolist()
    sizes = chunk_sizes([0] * num_rows, lengths, budget=num_rows * lengths[0])
    rows, widths, start = [], [], 0
    for size in sizes:
        rows.append((size, lengths[start]))
        widths += [lengths[start]] * size
        start += size
    width_B = torch.tensor(widths, device=device)
    begin_B = torch.empty_like(width_B).index_copy_(0, order_B, width_B.cumsum(0) - width_B)
    column = torch.arange(num_prompt - 1, device=device) - (num_prompt - 1 - num_prefix_B)[:, None]
    place_of_prefix = begin_B[:, None] + column
    position_of_segment = num_prefix_B[:, None] + torch.arange(is_segment_BT.shape[1], device=device)
    place_of_segment = begin_B[:, None] + position_of_segment

    token_M = torch.zeros(sum(widths), dtype=torch.long, device=device)
    token_M[place_of_prefix[prompt_mask]] = token_of_prefix[prompt_mask]
    token_M[place_of_segment[is_segment_BT]] = token_of_segment[is_segment_BT]

    rank_B = row_B - first_B
    is_other = prompt_mask & ~is_first_B[:, None]
    num_others = int(rank_B.max())
    other_places = torch.zeros(num_prefix, num_others, dtype=torch.long, device=device)
    has_other = torch.zeros(num_prefix, num_others, 1, dtype=torch.bool, device=device)
    at = (token_of_prefix[is_other], (rank_B - 1)[:, None].expand_as(is_other)[is_other])
    other_places[at] = place_of_prefix[is_other]
    has_other[at] = True
    return Layout(
        input_ids_N=torch.cat([prompt_ids[is_prefix], input_ids[:, num_prompt - 1 : -1][is_segment_BT]]),
        position_N=torch.cat([column[is_prefix], position_of_segment[is_segment_BT]]),
        label_N=torch.cat([labels.new_full((num_prefix,), -100), labels[:, num_prompt:][is_segment_BT]]),
        is_predicted_BT=is_segment_BT,
        token_M=token_M,
        place_N=torch.cat([place_of_prefix[is_prefix], place_of_segment[is_segment_BT]]),
        other_places=other_places,
        has_other=has_other,
        num_prefix=num_prefix,
        rows=rows,
    )


class _IntoRows(torch.autograd.Function):
    """Tokens [N, D] to places [M, D]. A prompt's token has a place in each of its rows, and its gradient is their sum."""

    @staticmethod
    def forward(ctx: Any, values_ND: torch.Tensor, layout: Layout) -> torch.Tensor:
        ctx.layout = layout
        return values_ND.index_select(0, layout.token_M)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        layout: Layout = ctx.layout
        (gradient_MD,) = gradients
        gradient_ND = gradient_MD.index_select(0, layout.place_N)
        if layout.other_places.numel():
            others = gradient_MD.index_select(0, layout.other_places.flatten()).view(*layout.other_places.shape, -1)
            gradient_ND[: layout.num_prefix] += others.mul_(layout.has_other).sum(1)
        return gradient_ND, None


class _OutOfRows(torch.autograd.Function):
    """Places [M, D] to tokens [N, D]: the one place of each that `Layout.place_N` names."""

    @staticmethod
    def forward(ctx: Any, values_MD: torch.Tensor, layout: Layout) -> torch.Tensor:
        ctx.layout = layout
        return values_MD.index_select(0, layout.place_N)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient_ND,) = gradients
        gradient_MD = gradient_ND.new_zeros(len(ctx.layout.token_M), gradient_ND.shape[1])
        return gradient_MD.index_copy_(0, ctx.layout.place_N, gradient_ND), None


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    shared_prompts: Layout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' scaled dot product attention, row by row where a pass has a layout. Arguments are [1, heads, N, width] then."""
    if shared_prompts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    tokens = [states.transpose(1, 2).flatten(2)[0] for states in (query, key, value)]
    in_rows = [_IntoRows.apply(states, shared_prompts) for states in tokens]  # type: ignore[no-untyped-call]
    places = [num_rows * length for num_rows, length in shared_prompts.rows]
    found = []
    for shape, *parts in zip(shared_prompts.rows, *(states.split(places) for states in in_rows), strict=True):
        parts = [part.view(*shape, -1, query.shape[-1]).transpose(1, 2) for part in parts]
        found.append(sdpa_attention_forward(module, *parts, None, **options)[0].flatten(0, 1).flatten(1))
    values_ND: torch.Tensor = _OutOfRows.apply(torch.cat(found), shared_prompts)  # type: ignore[no-untyped-call]
    return values_ND.view(1, query.shape[2], query.shape[1], -1), None


class SharedPrompts:
    """Stands in for a model in TRL's log-probability pass: padded rows in, padded log-probabilities of completions out."""

    def __init__(self, model: Any, *, num_prompt: int):
        """num_prompt: columns of the prompts."""
        self.model, self.num_prompt = model, num_prompt

    def __call__(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **options: Any
    ) -> Any:
        """An object with `log_probs` and `entropy` of the completions' columns, [B, T]; 0 at padding. Arguments are [B, L]."""
        # Local to this process; a call without a layout gets the library's own.
        ALL_ATTENTION_FUNCTIONS[SHARING_ATTENTION] = attention
        layout = layout_of(input_ids, attention_mask, labels, num_prompt=self.num_prompt)
        found = self.model(
            input_ids=layout.input_ids_N[None],
            position_ids=layout.position_N[None],
            # A mask of four dimensions is the model's to pass on and not to make; attention has no use for it.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device),
            shift_labels=layout.label_N[None],
            shared_prompts=layout,
            **options,
        )

        def padded(values: torch.Tensor | None) -> torch.Tensor | None:
            if values is None:
                return None
            return values.new_zeros(layout.is_predicted_BT.shape).masked_scatter(
                layout.is_predicted_BT, values[0, layout.num_prefix :]
            )

        return SimpleNamespace(log_probs=padded(found.log_probs), entropy=padded(getattr(found, "entropy", None)))
