"""Models small enough to train in a test, made here: nothing is downloaded and nothing is committed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Tests are not a package (importmode=importlib): what they share is found beside them.
sys.path.insert(0, str(Path(__file__).parent))

REPO = Path(__file__).resolve().parents[2]
TOKENIZERS = REPO.parent / "shared" / "data" / "tokenizers"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_llama(folder: Path, *, seed: int = 0, hidden: int = 32) -> Path:
    """A two-layer Llama with random weights and a byte-level tokenizer that has bos, eos, pad and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=special[0], pad_token=special[1])
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_qwen(folder: Path, *, variant: str = "base") -> Path:
    """A two-layer Qwen2 with random weights and the real Qwen2.5 tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    source = TOKENIZERS / "qwen2"
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(source / name, folder / name)
    shutil.copy(source / f"tokenizer_config.qwen2.5-{variant}.json", folder / "tokenizer_config.json")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=151936,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32768,
            tie_word_embeddings=True,
            bos_token_id=151643,
            eos_token_id=151643 if variant == "base" else 151645,
        )
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    if not (TOKENIZERS / "qwen2" / "vocab.json").is_file():
        pytest.skip(f"the real Qwen tokenizer is not at {TOKENIZERS}")
    made: dict[str, Path] = {}

    def make(variant: str) -> Path:
        if variant not in made:
            made[variant] = make_qwen(tmp_path_factory.mktemp(f"tiny-qwen-{variant}"), variant=variant)
        return made[variant]

    return make


def shortness(completions: list[str], **columns: object) -> list[float]:
    """A reward that random weights earn: different for different completions, and soon learned."""
    return [1.0 / (1 + len(text)) for text in completions]


@pytest.fixture
def build(tiny_llama: Path, tmp_path: Path) -> Callable[..., Any]:
    """A trainer of the given class on the tiny Llama: `build(TinyZeroTrainer, reward_funcs=..., max_steps=3)`."""

    def make(
        trainer_class: type, *, reward_funcs: Any = shortness, rows: Any = None, eval_rows: Any = None, **settings: Any
    ) -> Any:
        from datasets import Dataset
        from transformers import AutoTokenizer
        from trl import GRPOConfig, RLOOConfig, RLOOTrainer

        ours = {
            *("task", "give_up_after", "seconds_before", "callbacks", "rollout_func", "batching", "critic", "replay"),
            *("algorithm", "advantage_whitening", "soft_overlong_tokens", "dynamic_sampling_rounds", "curriculum"),
            *("max_generated_tokens", "peft_config", "quantization_config"),
        }
        extras = {key: settings.pop(key) for key in ours & settings.keys()}
        model = settings.pop("model", tiny_llama)
        rows = rows or [
            {"prompt": f"{n} + {n + 3} =", "prefill": "", "nums": [n, n + 3], "target": 9} for n in range(16)
        ]
        values: dict[str, Any] = {
            "output_dir": str(tmp_path / trainer_class.__name__),
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "max_completion_length": 8,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "use_cpu": True,
            "seed": 7,
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            **settings,
        }
        return trainer_class(
            model=str(model),
            reward_funcs=reward_funcs,
            args=(RLOOConfig if issubclass(trainer_class, RLOOTrainer) else GRPOConfig)(**values),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(eval_rows) if eval_rows else None,
            processing_class=AutoTokenizer.from_pretrained(tiny_llama, padding_side="left"),
            **extras,
        )

    return make


def weights_of(trainer: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
