"""The shape of a model: from its config.json, or from a table of known ones where no file and no network is at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyzero_trl import hub
from tinyzero_trl.failures import ConfigError, first_line, nearest
from tinyzero_trl.models import TRAINED, json_object, load_path, locate


@dataclass(frozen=True)
class Shape:
    """A dense decoder with gated MLPs (Llama, Qwen2, Qwen3, Mistral, ...)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    is_tied: bool
    """Whether the head is the embedding."""
    has_qkv_bias: bool = False

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of one layer's linear maps: q, k, v, o, gate, up, down."""
        h, q, kv, i = self.hidden, self.query_width, self.kv_width, self.intermediate
        return (h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's linear maps."""
        return sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def linear_weights(self) -> int:
        """Weights of all layers' linear maps: what LoRA adapts and 4-bit loading shrinks; the head is neither's."""
        return self.layers * self.layer_weights

    @property
    def embedding_weights(self) -> int:
        """Weights of embedding and head, once where they are the same."""
        return self.vocab * self.hidden * (1 if self.is_tied else 2)

    @property
    def num_parameters(self) -> int:
        biases = self.query_width + 2 * self.kv_width if self.has_qkv_bias else 0
        return self.linear_weights + self.embedding_weights + self.layers * (2 * self.hidden + biases) + self.hidden

    def lora_weights(self, rank: int, targets: tuple[str, ...]) -> int:
        """Weights of an adapter of `rank` on the named maps of every layer (`all-linear`: all seven)."""
        names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        chosen = [
            pair
            for name, pair in zip(names, self.linears, strict=True)
            if "all-linear" in targets or any(name.endswith(target) for target in targets)
        ]
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in chosen)


def _qwen2(layers: int, hidden: int, heads: int, kv: int, inner: int, vocab: int, *, is_tied: bool) -> Shape:
    return Shape(layers, hidden, heads, kv, hidden // heads, inner, vocab, is_tied, has_qkv_bias=True)


KNOWN: Mapping[str, Shape] = {
    "Qwen/Qwen2.5-0.5B": _qwen2(24, 896, 14, 2, 4864, 151936, is_tied=True),
    "Qwen/Qwen2.5-1.5B": _qwen2(28, 1536, 12, 2, 8960, 151936, is_tied=True),
    "Qwen/Qwen2.5-3B": _qwen2(36, 2048, 16, 2, 11008, 151936, is_tied=True),
    "Qwen/Qwen2.5-7B": _qwen2(28, 3584, 28, 4, 18944, 152064, is_tied=False),
    "Qwen/Qwen2.5-14B": _qwen2(48, 5120, 40, 8, 13824, 152064, is_tied=False),
    "Qwen/Qwen2.5-32B": _qwen2(64, 5120, 40, 8, 27648, 152064, is_tied=False),
    "Qwen/Qwen2.5-72B": _qwen2(80, 8192, 64, 8, 29568, 152064, is_tied=False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _qwen2(28, 1536, 12, 2, 8960, 151936, is_tied=False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _qwen2(28, 3584, 28, 4, 18944, 152064, is_tied=False),
    "Qwen/Qwen3-0.6B": Shape(28, 1024, 16, 8, 128, 3072, 151936, True),
    "Qwen/Qwen3-1.7B": Shape(28, 2048, 16, 8, 128, 6144, 151936, True),
    "Qwen/Qwen3-4B": Shape(36, 2560, 32, 8, 128, 9728, 151936, True),
    "Qwen/Qwen3-8B": Shape(36, 4096, 32, 8, 128, 12288, 151936, False),
    "meta-llama/Llama-3.2-1B": Shape(16, 2048, 32, 8, 64, 8192, 128256, True),
    "meta-llama/Llama-3.2-3B": Shape(28, 3072, 24, 8, 128, 8192, 128256, True),
    "meta-llama/Llama-3.1-8B": Shape(32, 4096, 32, 8, 128, 14336, 128256, False),
    "meta-llama/Llama-3.1-70B": Shape(80, 8192, 64, 8, 128, 28672, 128256, False),
}
"""From the config.json of each on the hub; `-Instruct`, `-Math` and `-Coder` have the shape of their base."""
VARIANTS = ("-Instruct", "-Base", "-Math", "-Coder")
SECONDS_FOR_THE_HUB = 5


def shape_of(name: str, *, revision: str | None = None) -> Shape:
    """The shape of a folder, a known model or a hub id, looked for in this order.

    Raises: ConfigError where it is not known and the hub does not answer, or where it is no dense decoder.
    """
    folder = Path(load_path(name)).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        return shape_of(locate(name, typed=TRAINED).path, revision=revision)
    if folder.is_dir():
        return shape_from(json_object(folder / "config.json", f"{TRAINED}{name}"), name=name)
    known = name
    for variant in VARIANTS:
        known = known.replace(variant, "")
    if known in KNOWN:
        return KNOWN[known]
    locate(name, typed=TRAINED)  # a path that is not there is told so
    try:
        from huggingface_hub import hf_hub_download

        hub.reached()
        file = hf_hub_download(name, "config.json", revision=revision, etag_timeout=SECONDS_FOR_THE_HUB)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.model_name_or_path: the shape of {name} is not known here, and the hub did not give its config.json "
            f"({first_line(error)[:120]}); give a folder with a config.json, or one of {', '.join(KNOWN)}{nearest(name, list(KNOWN))}"
        ) from error
    return shape_from(json.loads(Path(file).read_text(encoding="utf-8")), name=name)


def shape_from(config: Mapping[str, Any], *, name: str) -> Shape:
    """The shape a config.json describes. Raises: ConfigError for mixtures of experts and other architectures."""
    text = config.get("text_config") or config
    experts = [key for key in ("num_experts", "num_local_experts", "n_routed_experts") if text.get(key)]
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    missing = [key for key in needed if key not in text]
    if experts or missing:
        why = f"it has {experts[0]}" if experts else f"its config.json has no {missing[0]}"
        raise ConfigError(f"{name}: only dense decoders can be estimated; {why}")
    heads = int(text["num_attention_heads"])
    is_tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True)))
    return Shape(
        layers=int(text["num_hidden_layers"]),
        hidden=int(text["hidden_size"]),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or text["hidden_size"] // heads),
        intermediate=int(text["intermediate_size"]),
        vocab=int(text["vocab_size"]),
        is_tied=is_tied,
        has_qkv_bias=bool(text.get("attention_bias", text.get("model_type") == "qwen2")),
    )
