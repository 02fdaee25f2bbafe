"""The forward passes of the sampler: prompts are read once, then each pass gives the next token's logits of every row.

Rows whose prompts were read together are a Cohort: they are equally old, so that they share the columns of one key-value cache, and
attention reads no column that none of them has. A pass of PlainDecoder takes several cohorts at once: all matrix products are of all
rows, and only attention is computed cohort by cohort. It knows the decoders of PLAIN. Any other model goes through its own forward
pass (ModelDecoder), one cohort after the other.
Axes: A = rows of all cohorts, B = rows of one, P = different prompts, L = columns of the cache, H = heads, K = heads of keys and
values, D = width of a head, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

CACHE_GROWTH = 256
"""Fewest tokens by which a full cache grows. It usually doubles, up to the longest completion: many small steps would fragment a GPU's memory."""
PLAIN = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
"""Models that PlainDecoder computes itself: norm, rotary attention, norm, gated MLP. Exactly these classes, none derived from them."""
STATIC_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose angles depend on the position alone, and not on the length of the text."""


class GrowingLayer(DynamicLayer):
    """A cache layer that writes new keys and values in place: one token costs one token, not a copy of the past."""

    def __init__(self, *args: Any, max_tokens: int, **kwargs: Any):
        """max_tokens: largest number of tokens it holds."""
        super().__init__(*args, **kwargs)
        self._max_tokens = max_tokens

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys = self.values = key_states.new_empty(*key_states.shape[:2], 0, key_states.shape[-1])
            self._keys, self._values = self.keys, self.values
        past, new = self.keys.shape[-2], key_states.shape[-2]
        if past + new > self._keys.shape[-2]:
            self._resize(capacity=max(past + new, min(self._max_tokens, past + new + max(past, CACHE_GROWTH))))
        self._view(len(key_states), past + new)
        self.keys[:, :, past:] = key_states
        self.values[:, :, past:] = value_states
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Make row i a copy of row `indices[i]`."""
        self._keys, self._values = self.keys[indices], self.values[indices]
        self.keys, self.values = self._keys, self._values

    def move(self, rows: torch.Tensor, *, to: torch.Tensor, keep: int) -> None:
        """Copy these rows to the places of others, then drop all rows from place `keep` on. Their memory is kept."""
        self.keys[to], self.values[to] = self.keys[rows], self.values[rows]
        self._view(keep, self.keys.shape[-2])

    def shrink(self) -> None:
        """Free the memory of dropped rows if it is half of the whole or more; that copies the others."""
        if len(self.keys) <= len(self._keys) // 2:
            self._resize(capacity=self._keys.shape[-2])

    def _resize(self, *, capacity: int) -> None:
        self._keys, self._values = _resized(self.keys, capacity), _resized(self.values, capacity)
        self._view(len(self.keys), self.keys.shape[-2])

    def _view(self, rows: int, length: int) -> None:
        self.keys, self.values = self._keys[:rows, :, :length], self._values[:rows, :, :length]


def _resized(tensor: torch.Tensor, capacity: int) -> torch.Tensor:
    batch, heads, length, width = tensor.shape
    resized = tensor.new_empty(batch, heads, capacity, width)
    resized[:, :, :length] = tensor
    return resized


class Cohort:
    """The cache of rows whose prompts were read together, padded on the left."""

    def __init__(self, cache: Cache, is_token_BL: torch.Tensor, *, num_columns: int):
        """is_token_BL: True where the cache holds a token, False at the padding; with room for the longest completion.

        num_columns: columns of the cache in use.
        """
        self.cache, self._is_token_BL, self.num_columns = cache, is_token_BL, num_columns
        self._padding_B = is_token_BL.shape[1] - is_token_BL.sum(1)
        self.padding = int(self._padding_B.max())
        """Most columns of padding that a row had when the prompts were read."""

    def __len__(self) -> int:
        return len(self._is_token_BL)

    @property
    def is_token_BL(self) -> torch.Tensor:
        """True where the cache holds a token, False at the padding."""
        return self._is_token_BL[:, : self.num_columns]

    @property
    def is_full(self) -> bool:
        """True if the cache has no room for another token, so that every row is done."""
        return self.num_columns + 1 >= self._is_token_BL.shape[1]

    @property
    def positions_B(self) -> torch.Tensor:
        """Position of each row's next token in its text."""
        return self.num_columns - self._padding_B

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Drop these rows; rows from the end take their places. Returns the earlier place of each row that is left."""
        dropped, keep = set(rows), len(self) - len(rows)
        if not rows:
            return list(range(keep))
        holes = [row for row in sorted(dropped) if row < keep]
        movers = [row for row in range(keep, len(self)) if row not in dropped]
        left = list(range(keep))
        for hole, mover in zip(holes, movers, strict=True):
            left[hole] = mover
        places = partial(torch.tensor, dtype=torch.long, device=self._is_token_BL.device)
        self._is_token_BL, self._padding_B = self._is_token_BL[places(left)], self._padding_B[places(left)]
        for layer in self.cache.layers if keep else ():
            if isinstance(layer, GrowingLayer):
                layer.move(places(movers), to=places(holes), keep=keep)
            else:
                layer.batch_select_indices(places(left))
        return left

    def shrink(self) -> None:
        """Free the memory of dropped rows, if it is much."""
        for layer in self.cache.layers:
            if isinstance(layer, GrowingLayer):
                layer.shrink()


class ModelDecoder:
    """Any causal language model of transformers, through its own forward pass."""

    takes_several_cohorts = False
    """True if one pass takes several cohorts."""

    def __init__(self, model: Any, *, pad_token_id: int, max_new_tokens: int):
        self._model, self._pad_token_id, self._max_new_tokens = model, pad_token_id, max_new_tokens

    def read(self, prompt_ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Cohort]:
        """Logits [B, V] of each row's first token, and the cohort. Equal prompts are read once where the cache can be copied."""
        width = max(map(len, prompt_ids))
        cache = self._new_cache(max_tokens=width + self._max_new_tokens)
        if cache.layer_class_to_replicate is None:
            logits_BV, is_token_BL = self._read(prompt_ids, cache)
            return logits_BV, Cohort(cache, is_token_BL, num_columns=width)
        different, copied_B = _different(prompt_ids)
        logits_PV, is_token_PL = self._read(different, cache)
        copied_B = copied_B.to(logits_PV.device)
        for layer in cache.layers:
            layer.batch_select_indices(copied_B)
        return logits_PV[copied_B], Cohort(cache, is_token_PL[copied_B], num_columns=width)

    def _read(self, prompt_ids: Sequence[Sequence[int]], cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the token after each prompt, and True where its row of the cache will hold a token."""
        device, width = self._model.device, max(map(len, prompt_ids))
        input_ids_PL = torch.full((len(prompt_ids), width), self._pad_token_id)
        is_token_PL = torch.zeros(len(prompt_ids), width + self._max_new_tokens, dtype=torch.bool)
        is_token_PL[:, width:] = True
        for row, ids in enumerate(
            prompt_ids
        ):  # padded on the left, so that every row's next token is at the same place
            input_ids_PL[row, width - len(ids) :] = torch.tensor(ids)
            is_token_PL[row, width - len(ids) : width] = True
        is_token_PL = is_token_PL.to(device)
        mask_PL = is_token_PL[:, :width]
        positions_PL = (mask_PL.cumsum(1) - 1).clamp(min=0)
        return self._pass(input_ids_PL.to(device), mask_PL, positions_PL, cache), is_token_PL

    def step(self, cohorts: Sequence[Cohort], tokens_A: torch.Tensor) -> torch.Tensor:
        """Logits [A, V] of the token after `tokens_A`."""
        (cohort,) = cohorts
        positions_B = cohort.positions_B
        cohort.num_columns += 1
        return self._pass(tokens_A[:, None], cohort.is_token_BL, positions_B[:, None], cohort.cache)

    def _pass(
        self, ids_BL: torch.Tensor, mask_BL: torch.Tensor, positions_BL: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        logits_BLV: torch.Tensor = self._model(
            input_ids=ids_BL,
            attention_mask=mask_BL.long(),
            position_ids=positions_BL,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits_BLV[:, -1]

    def _new_cache(self, *, max_tokens: int) -> Cache:
        """A cache of GrowingLayers if all layers attend to the whole past; otherwise the library's own cache."""
        kinds = set(getattr(self._model.config.get_text_config(), "layer_types", None) or ["full_attention"])
        return (
            Cache(layer_class_to_replicate=partial(GrowingLayer, max_tokens=max_tokens))
            if kinds == {"full_attention"}
            else DynamicCache(config=self._model.config)
        )


class PlainDecoder(ModelDecoder):
    """A model of PLAIN: prompts go through its own forward pass, and steps through the same operations without what a step does not need.

    Of a model's forward pass it leaves out what depends on the step alone in each layer, such as masks, and the checks and records
    around each module. A test holds its logits to the model's.
    """

    takes_several_cohorts = True

    def __init__(self, model: Any, **settings: int):
        super().__init__(model, **settings)
        base = model.model
        self._embedding, self._norm, self._head = base.embed_tokens, base.norm, _map(model.lm_head)
        self._layers = [PlainLayer(layer) for layer in base.layers[: base.config.num_hidden_layers]]
        self._rotation = base.rotary_emb
        self._head_dim = base.layers[0].self_attn.head_dim
        self._cos_LD = self._sin_LD = torch.empty(0, self._head_dim)

    def step(self, cohorts: Sequence[Cohort], tokens_A: torch.Tensor) -> torch.Tensor:
        hidden_AN = self._embedding(tokens_A)
        positions_A = torch.cat([cohort.positions_B for cohort in cohorts])
        cos_A1D, sin_A1D = (table_LD[positions_A][:, None] for table_LD in self._rotations(cohorts, hidden_AN))
        for cohort in cohorts:
            cohort.num_columns += 1
        masks = [_mask(cohort, hidden_AN) for cohort in cohorts]
        for index, layer in enumerate(self._layers):
            queries_AHD, keys_AKD, values_AKD = layer.heads(hidden_AN, cos_A1D, sin_A1D)
            mixed, start = [], 0
            for cohort, mask_B11L in zip(cohorts, masks, strict=True):
                part, start = slice(start, start + len(cohort)), start + len(cohort)
                keys_BKLD, values_BKLD = cohort.cache.layers[index].update(
                    keys_AKD[part, :, None], values_AKD[part, :, None]
                )
                mixed.append(_attention(queries_AHD[part], keys_BKLD, values_BKLD, mask_B11L, layer.scale))
            hidden_AN = layer.output(hidden_AN, mixed[0] if len(mixed) == 1 else torch.cat(mixed))
        logits_AV: torch.Tensor = self._head(_normed(hidden_AN, self._norm))
        return logits_AV

    def _rotations(self, cohorts: Sequence[Cohort], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [L, D] of each position's angles, for every position that a row can have."""
        longest = max(cohort.num_columns for cohort in cohorts) + self._max_new_tokens
        if len(self._cos_LD) < longest:
            cos_1LD, sin_1LD = self._rotation(like, torch.arange(longest, device=like.device)[None])
            half = self._head_dim // 2
            # rotate_half of transformers: (a, b) becomes (-b, a), so that the sines of the first half are subtracted.
            self._cos_LD, self._sin_LD = cos_1LD[0], torch.cat([-sin_1LD[0, :, :half], sin_1LD[0, :, half:]], -1)
        return self._cos_LD, self._sin_LD


class PlainLayer:
    """The two halves of a layer's pass for one token a row, before and after attention."""

    def __init__(self, layer: Any):
        attention, mlp = layer.self_attn, layer.mlp
        self.scale = attention.scaling
        self._head_dim, self._num_heads = attention.head_dim, attention.config.num_attention_heads
        self._num_rotated = self._num_heads + attention.config.num_key_value_heads
        self._norm, self._mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._head_norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self._heads = _joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self._add_output, self._add_down = _adding(attention.o_proj), _adding(mlp.down_proj)
        self._gate, self._up, self._activation = _map(mlp.gate_proj), _map(mlp.up_proj), mlp.act_fn

    def heads(
        self, hidden_AN: torch.Tensor, cos_A1D: torch.Tensor, sin_A1D: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [A, H, D], and keys and values [A, K, D]."""
        heads_AND = self._heads(_normed(hidden_AN, self._norm)).view(len(hidden_AN), -1, self._head_dim)
        rotated_AND = heads_AND[:, : self._num_rotated]
        if self._head_norms is not None:
            parts = rotated_AND[:, : self._num_heads], rotated_AND[:, self._num_heads :]
            rotated_AND = torch.cat(
                [_normed(part, norm) for part, norm in zip(parts, self._head_norms, strict=True)], dim=1
            )
        rotated_AND = (rotated_AND * cos_A1D).addcmul_(rotated_AND.roll(self._head_dim // 2, -1), sin_A1D)
        return (
            rotated_AND[:, : self._num_heads],
            rotated_AND[:, self._num_heads :],
            heads_AND[:, self._num_rotated :],
        )

    def output(self, hidden_AN: torch.Tensor, mixed_AN: torch.Tensor) -> torch.Tensor:
        """The stream after this layer, given what attention mixed from the values."""
        hidden_AN = self._add_output(hidden_AN, mixed_AN)
        normed_AN = _normed(hidden_AN, self._mlp_norm)
        return self._add_down(hidden_AN, self._activation(self._gate(normed_AN)).mul_(self._up(normed_AN)))


def bytes_of_a_token(config: Any, itemsize: int) -> int:
    """Bytes of one token's keys and values in all layers; `itemsize` bytes a number, of the model with this config."""
    of_text = config.get_text_config()
    head = getattr(of_text, "head_dim", None) or of_text.hidden_size // of_text.num_attention_heads
    heads = getattr(of_text, "num_key_value_heads", None) or of_text.num_attention_heads
    return int(2 * of_text.num_hidden_layers * heads * head * itemsize)


def decoder_of(model: Any, *, pad_token_id: int, max_new_tokens: int) -> ModelDecoder:
    """The fastest decoder that computes what the model computes."""
    kind = PlainDecoder if _is_plain(model) else ModelDecoder
    return kind(model, pad_token_id=pad_token_id, max_new_tokens=max_new_tokens)


def _is_plain(model: Any) -> bool:
    """True if nothing stands between the weights and the forward pass that PLAIN's classes have.

    A wrapped `forward` (mixed precision of accelerate), hooks, other kinds of attention, and weights that lie elsewhere (ZeRO-3, tensor
    parallelism) are left to the model.
    """
    if type(model) not in PLAIN or "forward" in vars(model):
        return False
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        kinds == {"full_attention"}
        and not (isinstance(model, MistralForCausalLM) and config.sliding_window)
        and config.rope_parameters["rope_type"] in STATIC_ROTATIONS
        and all(type(parameter.data) is torch.Tensor and parameter.numel() for parameter in model.parameters())
        and not any(
            module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
            for module in model.modules()
        )
    )


def _map(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The module as a function. A plain linear map goes around the module's call, which takes longer than a small product."""
    return partial(F.linear, weight=module.weight, bias=module.bias) if type(module) is nn.Linear else module


def _joined(modules: Sequence[Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Linear maps of one input as a function that gives their outputs side by side.

    On a CPU it is one product with a copy of their weights. A GPU has the time for several, and no memory to spare.
    """
    if all(type(module) is nn.Linear and module.weight.device.type == "cpu" for module in modules):
        biases = [module.bias for module in modules if module.bias is not None]
        bias = torch.cat(biases) if len(biases) == len(modules) else None
        if bias is not None or not biases:
            return partial(F.linear, weight=torch.cat([module.weight for module in modules]), bias=bias)
    maps = [_map(module) for module in modules]
    return lambda inputs: torch.cat([of(inputs) for of in maps], dim=-1)


def _adding(module: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A linear map as a function of (stream, input) that gives the stream with the map of the input added."""
    if type(module) is nn.Linear and module.bias is None and module.weight.dtype == torch.float32:
        weight_NM = module.weight.t()
        return lambda stream, inputs: torch.addmm(stream, inputs, weight_NM)
    of = _map(module)
    return lambda stream, inputs: stream + of(inputs)


def _normed(hidden: torch.Tensor, norm: Any) -> torch.Tensor:
    """Root mean square norm over the last axis, in the precision of PLAIN's own."""
    if hidden.dtype != torch.float32:
        normed: torch.Tensor = norm(hidden)
        return normed
    scales = hidden.square().mean(-1, keepdim=True).add_(norm.variance_epsilon).rsqrt_()
    return (hidden * scales).mul_(norm.weight)


def _mask(cohort: Cohort, like: torch.Tensor) -> torch.Tensor | None:
    """Numbers [B, 1, 1, columns with padding] to add to attention's scores; None without padding."""
    if not cohort.padding:
        return None
    is_token_BL = cohort.is_token_BL[:, : cohort.padding]
    return torch.zeros_like(is_token_BL, dtype=like.dtype).masked_fill_(~is_token_BL, -torch.inf)[:, None, None]


def _attention(
    queries_BHD: torch.Tensor,
    keys_BKLD: torch.Tensor,
    values_BKLD: torch.Tensor,
    mask_B11L: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Attention's mixture of values [B, H x D] for one query a head; heads that share keys are the queries of one product."""
    batch, heads, length, width = keys_BKLD.shape
    queries_BKGD = queries_BHD.reshape(batch, heads, -1, width)
    if queries_BHD.device.type != "cpu" or queries_BHD.dtype != torch.float32:
        if mask_B11L is not None:
            mask_B11L = F.pad(mask_B11L, (0, length - mask_B11L.shape[-1])).expand(-1, heads, queries_BKGD.shape[2], -1)
        mixed_BKGD = F.scaled_dot_product_attention(queries_BKGD, keys_BKLD, values_BKLD, mask_B11L, scale=scale)
        return mixed_BKGD.reshape(batch, -1)
    # On a CPU, batched products beat PyTorch's fused attention, which computes queries of different rows one by one.
    scores_NGL = torch.baddbmm(
        queries_BKGD.new_empty(1, 1, 1),
        queries_BKGD.flatten(0, 1),
        keys_BKLD.flatten(0, 1).transpose(1, 2),
        beta=0,
        alpha=scale,
    )
    if mask_B11L is not None:
        scores_NGL.view(batch, heads, -1, length)[..., : mask_B11L.shape[-1]].add_(mask_B11L)
    return torch.bmm(scores_NGL.softmax(-1), values_BKLD.flatten(0, 1)).view(batch, -1)


def _different(prompt_ids: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], torch.Tensor]:
    """The different prompts, and the place of each row's prompt among them [B]."""
    place_by_ids: dict[tuple[int, ...], int] = {}
    places = [place_by_ids.setdefault(tuple(ids), len(place_by_ids)) for ids in prompt_ids]
    return list(place_by_ids), torch.tensor(places)
