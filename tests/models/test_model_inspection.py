"""Every fault of a model, tokenizer, chat template or adapter is one line, and the same one in training and in evaluation."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from small_models import CHAT_TEMPLATE
from tinyzero_trl import sft
from tinyzero_trl.config import checks, compose
from tinyzero_trl.evaluation.completions import checked_model, fitted_rows
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.models import adapters, inspection, load_path, tokens
from tinyzero_trl.models.location import locate
from tinyzero_trl.models.policy import checked_start, settle_adapter
from tinyzero_trl.storage import manifest
from tinyzero_trl.tasks import TASKS

TINY = Path(load_path("tiny"))
WEIGHTS = "model.safetensors"
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
"""The chat template of google/gemma-2-2b-it as it is in its tokenizer_config.json."""

Damage = Callable[[Path], Any]


@pytest.fixture(autouse=True)
def _say_each_note_again() -> None:
    inspection.note.cache_clear()


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the shipped tiny model, damaged."""

    def make(*damages: Damage) -> Path:
        folder = shutil.copytree(TINY, tmp_path / "model")
        for damage in damages:
            damage(folder)
        return folder

    return make


@functools.cache
def composed(*words: str) -> Any:
    return compose(["+countdown=grpo-tiny", *words])


def run_of(folder: Path | str, *words: str) -> Any:
    """The resolved run that starts from this model."""
    cfg = deepcopy(composed(*words))
    cfg.model.model_name_or_path = str(folder)
    return cfg


def refused(folder: Path | str, *words: str) -> str:
    """The line with which training refuses a model; evaluation says the same behind its own key."""
    with pytest.raises(ConfigError) as training:
        checked_start(run_of(folder, *words))
    line = str(training.value)
    assert "\n" not in line
    if not words:
        with pytest.raises(ConfigError) as evaluation:
            checked_model(locate(str(folder)))
        assert str(evaluation.value) == line.replace("model.model_name_or_path=", "--model_path ")
    return line


def rewritten(name: str, **changes: Any) -> Damage:
    """A JSON file with other values; None takes a key away."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return damage


def replaced(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def removed(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def cut(name: str, share: float) -> Damage:
    return lambda folder: os.truncate(folder / name, int(share * (folder / name).stat().st_size))


def tensors(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """model.safetensors with other tensors in it."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        content = load_file(folder / WEIGHTS)
        change(content)
        save_file(content, folder / WEIGHTS, {"format": "pt"})

    return damage


def sharded(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="1MB")


def pickled(content: Callable[[dict[str, Any]], Any]) -> Damage:
    """pytorch_model.bin in the place of model.safetensors."""

    def damage(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file

        torch.save(content(load_file(folder / WEIGHTS)), folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()

    return damage


class Payload:
    """Code that must not run when a file of weights is opened."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("payload-ran",))


def zeros(*shape: int) -> Any:
    import torch

    return torch.zeros(shape)


def without_shard(folder: Path) -> None:
    sorted(folder.glob("model-*"))[1].unlink()


@pytest.mark.parametrize(
    ("damages", "message"),
    [
        ([cut(WEIGHTS, 0.5)], "model.safetensors, of 2,179,812 bytes, is cut off or damaged (SafetensorError: "),
        ([cut(WEIGHTS, 0.0001)], "is cut off or damaged"),
        ([replaced(WEIGHTS, b"")], "model.safetensors, of 0 bytes, is cut off or damaged"),
        ([replaced(WEIGHTS, b"\xff" * 100)], "is cut off or damaged"),
        ([replaced(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n")], "is a pointer of Git LFS"),
        ([removed(WEIGHTS)], "has no weights: there is no model.safetensors; copy the model again"),
        ([removed(WEIGHTS), replaced("tiny-q8.gguf", b"GGUF")], "no model.safetensors, only tiny-q8.gguf; GGUF is not read here"),
        ([removed(WEIGHTS), replaced("consolidated.00.pth", b"x")], "only consolidated.00.pth; save the model with save_pretrained"),
        ([tensors(lambda content: content.pop("model.norm.weight"))], "lacks weights that its config.json asks for: model.norm.weight;"),
        ([tensors(lambda content: content.update({"model.norm.weight": zeros(64)}))], "model.norm.weight has the shape [64], and config.json asks for [128]"),
        ([rewritten("config.json", num_hidden_layers=6)], "model.layers.4.input_layernorm.weight"),
        ([rewritten("config.json", vocab_size=400)], "model.embed_tokens.weight has the shape [306, 128], and config.json asks for [400, 128]"),
        ([rewritten("config.json", tie_word_embeddings=False)], "asks for: lm_head.weight;"),
        ([sharded, without_shard], "model.safetensors.index.json names model-00002-of-00006.safetensors, and there is no such file"),
        ([sharded, cut("model-00003-of-00006.safetensors", 0.5)], "model-00003-of-00006.safetensors, of "),
        ([sharded, cut("model.safetensors.index.json", 0.5)], "model.safetensors.index.json is not JSON"),
        ([sharded, replaced("model.safetensors.index.json", b"{}")], "model.safetensors.index.json has no weight_map"),
        ([pickled(dict), cut("pytorch_model.bin", 0.5)], "pytorch_model.bin, of 2,"),
        ([pickled(lambda content: content | {"x": Payload()})], "is a pickle that holds more than weights, and is not opened"),
        ([replaced("config.json", b"{")], "config.json is not JSON: Expecting property name"),
        ([replaced("config.json", bytes(range(256)))], "config.json is not JSON"),
        ([replaced("config.json", b"[]")], "config.json holds a list, and has to be an object"),
        ([removed("config.json")], "is not a model: it has neither config.json nor adapter_config.json"),
        ([rewritten("config.json", model_type=None)], "config.json names no model_type, such as llama or qwen2"),
        ([rewritten("config.json", model_type="lllama")], "the model_type 'lllama', which transformers"),
        ([rewritten("config.json", model_type="lllama")], "; did you mean llama?"),
        ([rewritten("config.json", model_type="t5", architectures=["T5ForConditionalGeneration"])], "is a T5ForConditionalGeneration, an encoder with a decoder"),
        ([rewritten("config.json", model_type="bert", architectures=["BertForMaskedLM"])], "is a BertForMaskedLM, which writes no text"),
        ([rewritten("config.json", model_type="roberta", architectures=["RobertaForCausalLM"])], "is a RobertaForCausalLM, which writes no text"),
        ([rewritten("config.json", architectures=["LlamaForSequenceClassification"])], "is a LlamaForSequenceClassification, which writes no text"),
        ([rewritten("config.json", num_attention_heads="four")], "config.json describes no model: "),
        ([rewritten("config.json", hidden_act="swoosh")], "cannot be loaded: KeyError: 'swoosh'"),
        ([replaced("generation_config.json", b"{")], "generation_config.json is not JSON"),
        ([removed("tokenizer.json"), removed("tokenizer_config.json")], "has no tokenizer that can be loaded"),
        ([cut("tokenizer.json", 0.5)], "has no tokenizer that can be loaded ("),
        ([replaced("tokenizer.json", b"{}")], "has no tokenizer that can be loaded ("),
        ([rewritten("tokenizer_config.json", eos_token=None)], "has no eos token, so no completion could end"),
        ([rewritten("tokenizer_config.json", eos_token="</s>")], "has 306 embeddings, and its tokenizer has tokens beyond them: '</s>'"),
        ([rewritten("tokenizer_config.json", pad_token="[PAD]")], "has 306 embeddings, and its tokenizer has tokens beyond them: '[PAD]'"),
    ],
)  # fmt: skip
def test_a_fault_of_a_model_is_one_line_the_same_in_training_and_evaluation(
    copy: Callable[..., Path], damages: list[Damage], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(copy(*damages))
    assert not Path("payload-ran").exists()


def more_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["apple", "pear", "plum", "fig"])
    tokenizer.save_pretrained(folder)


def test_a_vocabulary_larger_than_the_embeddings_is_refused_with_its_tokens(copy: Callable[..., Path]) -> None:
    line = refused(copy(more_tokens))
    assert "its tokenizer has tokens beyond them: 'apple', 'pear', 'plum' and 1 more; take the tokenizer" in line


def test_a_special_token_beyond_the_embeddings_is_noted_and_refused_in_a_prompt(
    copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """As Gemma 3 1B has <image_soft_token>: 262,145 tokens and 262,144 embeddings."""
    from transformers import AutoTokenizer

    def image(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
        tokenizer.save_pretrained(folder)

    folder = copy(image)
    start = checked_start(run_of(folder))
    assert "has no embedding for '<image_soft_token>' of its tokenizer" in capsys.readouterr().err
    assert inspection.beyond_embeddings(start.tokenizer, start.config) == ["<image_soft_token>"]
    with pytest.raises(ConfigError, match="has '<image_soft_token>', for which"):
        tokens.check_prompts(
            ["2 + <image_soft_token>"], start.tokenizer, start.config, name=str(folder), format_name="base"
        )


def tokenizer_with(template: str | None) -> Damage:
    return lambda folder: (folder / "chat_template.jinja").write_text(template) if template else None


FORMATS = TASKS["countdown"].formats
ROW = {"nums": [19, 36, 55], "target": 74}


@pytest.mark.parametrize("format_name", ["instruct", "r1_prefix"])
def test_a_template_without_system_role_gets_its_text_in_the_users_turn_in_training_and_evaluation(
    copy: Callable[..., Path], capsys: pytest.CaptureFixture[str], format_name: str
) -> None:
    folder = copy(tokenizer_with(GEMMA))
    cfg = run_of(
        folder,
        f"format={format_name}",
        "data.num_train_rows=20",
        "data.num_eval_rows=20",
        "trainer.max_completion_length=64",
    )
    start = checked_start(cfg)
    train_rows, _ = checks.rows(cfg, checks.parts(cfg), tokenizer=start.tokenizer)
    said = (
        f"note: the chat template of {folder} takes no system message; the system text stands in front of the user's\n"
    )
    assert capsys.readouterr().err == said  # once, whatever rows are read

    system, user, *prefill = FORMATS[format_name](train_rows[0])["prompt"]
    prompt = train_rows[0]["prompt"]
    assert prompt == [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *prefill]
    checks.check_rows(cfg, checks.parts(cfg), train_rows, start, generation_batch_size=8)
    text = start.tokenizer.apply_chat_template(prompt[:1], tokenize=False)
    assert text == f"<start_of_turn>user\n{system['content'].strip()}\n\n{user['content'].strip()}<end_of_turn>\n"

    (answered,) = fitted_rows(
        [{**train_rows[0], **FORMATS[format_name](train_rows[0])}], checked_model(locate(str(folder)))
    )
    assert answered["prompt"] == prompt


def test_a_template_that_drops_the_system_text_in_silence_gets_it_in_the_users_turn(copy: Callable[..., Path]) -> None:
    template = "{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    tokenizer = checked_start(run_of(copy(tokenizer_with(template)))).tokenizer
    prompt = FORMATS["instruct"](ROW)["prompt"]
    (taken,) = tokens.fitted([prompt], tokenizer, name="it")
    assert taken[0]["content"].startswith(prompt[0]["content"])
    assert [message["role"] for message in taken] == ["user"]


def test_a_template_with_a_system_role_keeps_it(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = checked_start(run_of("tiny")).tokenizer
    tokenizer.chat_template = CHAT_TEMPLATE
    prompts = [FORMATS["instruct"](ROW)["prompt"], "plain text"]
    assert tokens.fitted(prompts, tokenizer, name="it") is prompts
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, ["user"], "format mine makes chat messages, and the tokenizer of it has no chat template; use a plain-text format"),
        (GEMMA, ["user", "user"], "refuses what format mine makes (user, user): TemplateError: Conversation roles must alternate"),
        ("{% for m in messages %}", ["user"], "refuses what format mine makes (user): TemplateSyntaxError: Unexpected end of template"),
        ("{{ nothing.there }}", ["user"], "refuses what format mine makes (user): UndefinedError: 'nothing' is undefined"),
        ("{{ 1 / 0 }}", ["user"], "refuses what format mine makes (user): ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", ["user"], "refuses what format mine makes (user): SecurityError"),
        ("{{ messages[0]['content'] }}", ["user", "assistant"], "refuses what format mine makes (user, assistant): ValueError"),
    ],
)  # fmt: skip
def test_a_chat_template_that_does_not_take_the_prompts_is_one_line(
    template: str | None, messages: list[str], message: str
) -> None:
    tokenizer = checked_start(run_of("tiny")).tokenizer
    tokenizer.chat_template = template
    prompt = [{"role": role, "content": f"words {index}"} for index, role in enumerate(messages)]
    with pytest.raises(ConfigError) as error:
        tokens.check_prompts([prompt], tokenizer, name="it", format_name="mine")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_without_a_pad_token_the_eos_token_pads_and_that_is_said(
    copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    start = checked_start(run_of(copy(rewritten("tokenizer_config.json", pad_token=None))))
    assert start.tokenizer.pad_token == "<|endoftext|>"
    assert "has no pad token; its eos token '<|endoftext|>' is taken for padding" in capsys.readouterr().err


KINDS = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "qwen2": {"use_sliding_window": False},
    "qwen2, tied": {"tie_word_embeddings": True},
    "gemma2": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4},
    "gpt2": {"n_positions": 64},
    "gpt_neox": {},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["50GB", "20KB"], ids=["whole", "sharded"])
def test_a_model_without_a_fault_is_no_false_alarm(
    kind: str, size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "vocab_size": 306, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    if kind in ("gpt2", "gpt_neox"):
        shape.pop("num_key_value_heads")
    config = AutoConfig.for_model(kind.partition(",")[0], **(shape | KINDS[kind]))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path, max_shard_size=size)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path / name)
    checked_start(run_of(tmp_path))
    checked_model(locate(str(tmp_path)))
    assert capsys.readouterr().err == ""


def test_weights_that_no_layer_uses_and_pickled_ones_are_noted(
    copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    checked_start(run_of(copy(rewritten("config.json", num_hidden_layers=3), pickled(dict))))
    said = capsys.readouterr().err.splitlines()
    assert any("has its weights in pytorch_model.bin, which is read without running code" in line for line in said)
    assert any("has weights that its architecture does not use: model.layers.3." in line for line in said)
    assert all(line.startswith("note: ") for line in said)


def test_training_needs_an_architecture_by_name(copy: Callable[..., Path]) -> None:
    folder = copy(rewritten("config.json", architectures=None))
    line = refused(folder, "trainer.max_steps=1")
    assert (
        'config.json names no architecture, by which TRL loads the model; add "architectures": ["LlamaForCausalLM"]'
        in line
    )
    checked_model(locate(str(folder)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.lora_target_modules=[qq_proj]"], "model.lora_target_modules: the model has no module 'qq_proj'; it has down_proj, gate_proj, "),
        (["model.lora_target_modules=[q_proj,k_prj]"], "the model has no module 'k_prj'; it has down_proj, gate_proj, k_proj"),
        (["model.lora_target_modules=[q_proj,k_prj]"], "; did you mean k_proj?"),
        (["model.lora_target_modules=[query_key_value]"], "the model has no module 'query_key_value'"),
        (["model.lora_target_modules=[lm_head]"], "an adapter on the head (lm_head) is not trained by TRL"),
        (["model.lora_target_modules=[self_attn]"], "model.lora_*: Target module LlamaAttention("),
        (["model.lora_modules_to_save=[scores]"], "model.lora_modules_to_save: the model has no module 'scores'"),
        (["model.lora_target_parameters=[experts]"], "model.lora_target_parameters: the model has no parameter 'experts'"),
        (["model.lora_task_type=CHAT"], "model.lora_*: "),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_the_model_is_refused_with_the_modules_there_are(
    words: list[str], message: str
) -> None:
    assert message in refused("tiny", "model.use_peft=true", *words)


@pytest.mark.parametrize(
    "targets",
    ["null", "[all-linear]", "[q_proj]", "[q_proj,v_proj]", "[layers.1.self_attn.q_proj]", "['.*[01].self.*proj']"],
)
def test_every_way_to_name_modules_is_taken(targets: str) -> None:
    checked_start(run_of("tiny", "model.use_peft=true", f"model.lora_target_modules={targets}"))


def test_arguments_for_loading_that_the_model_does_not_have_are_refused() -> None:
    assert "cannot be loaded with colour='blue': TypeError: " in refused(
        "tiny", "trainer.model_init_kwargs={colour: blue}"
    )


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A run folder of LoRA on the shipped model, its adapter not 0."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), LoraConfig(task_type="CAUSAL_LM", r=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    run = tmp_path / "lora-run"
    model.save_pretrained(run / "model")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(run / "model")
    (run / "run.yaml").write_text("{task: countdown, format: base}")
    return run


def of_file(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        content = load_file(folder / "adapter_model.safetensors")
        change(content)
        save_file(content, folder / "adapter_model.safetensors", {"format": "pt"})

    return damage


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (removed("adapter_model.safetensors"), "has no weights of the adapter: there is no adapter_model.safetensors"),
        (cut("adapter_model.safetensors", 0.5), "adapter_model.safetensors, of "),
        (of_file(lambda content: content.pop(FIRST)), f"lacks weights that adapter_config.json asks for on {TINY}: {FIRST}"),
        (of_file(lambda content: content.update({FIRST: zeros(2, 64)})), "lora_A.weight has the shape [2, 64], and on "),
        (rewritten("adapter_config.json", r=4), "lora_A.weight has the shape [2, 128], and on "),
        (rewritten("adapter_config.json", target_modules=["query"]), "adapter_config.json does not fit "),
        (rewritten("adapter_config.json", peft_type="LARO"), "adapter_config.json does not fit "),
        (rewritten("adapter_config.json", base_model_name_or_path="./gone"), "adapter_config.json names a model below the adapter that cannot be used: ./gone: there is no such folder"),
        (rewritten("adapter_config.json", base_model_name_or_path=None), "does not name the model below the adapter"),
        (replaced("adapter_config.json", b"{"), "adapter_config.json is not JSON"),
    ],
)  # fmt: skip
def test_a_fault_of_an_adapter_is_one_line(adapter: Path, damage: Damage, message: str) -> None:
    folder = shutil.move(adapter / "model", adapter.with_name("adapter"))
    damage(Path(folder))
    with pytest.raises(ConfigError) as training:
        checked_start(run_of(folder))
    with pytest.raises(ConfigError) as evaluation:
        checked_model(locate(str(folder)))
    assert message in str(training.value)
    assert str(evaluation.value) == str(training.value).replace("model.model_name_or_path=", "--model_path ")
    assert "\n" not in str(training.value)


def test_a_run_folder_stands_for_its_final_model_or_its_newest_whole_checkpoint(copy: Callable[..., Path]) -> None:
    model = copy()
    run = model.with_name("run")
    for name in ("checkpoint-2", "checkpoint-10"):
        shutil.copytree(model, run / name)
        manifest.seal(run / name, step=1)
    (run / "run.yaml").write_text("{task: countdown, format: base}")
    cfg = run_of(run)
    assert checked_start(cfg).location.path == str(run / "checkpoint-10")
    assert cfg.model.model_name_or_path == str(run / "checkpoint-10")  # what run.yaml will say
    cut(WEIGHTS, 0.5)(run / "checkpoint-10")
    assert checked_start(run_of(run)).location.path == str(run / "checkpoint-2")
    assert "has model.safetensors of " in refused(run / "checkpoint-10")
    shutil.copytree(model, run / "model")
    manifest.seal(run / "model", step=12)
    assert checked_start(run_of(run)).location.path == str(run / "model")
    assert checked_start(run_of(run / "checkpoint-2")).location.path == str(run / "checkpoint-2")
    shutil.rmtree(run)
    run.mkdir()
    (run / "run.yaml").write_text("{task: countdown, format: base}")
    assert "is a run without a usable model: it has neither model/ nor a checkpoint" in refused(run)


def test_a_path_that_is_not_there_is_told_with_the_nearest(copy: Callable[..., Path]) -> None:
    folder = copy()
    assert refused(folder.with_name("modle")).endswith(f"; did you mean {folder}?")
    assert "is a file; give the folder that holds the model" in refused(folder / WEIGHTS)
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    assert "is a GGUF file; give the folder of the model it was made from" in refused(folder / "tiny.gguf")


def test_a_run_from_an_adapter_starts_from_one_whole_model_in_its_folder(adapter: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    manifest.seal(adapter / "model", step=1)
    cfg = run_of(adapter)
    start = checked_start(cfg)
    assert (start.location.path, start.location.adapter) == (str(TINY), str(adapter / "model"))
    assert cfg.model.model_name_or_path == str(adapter / "model")
    settle_adapter(cfg, start.location, tmp_path)
    begun = tmp_path / "start"
    assert cfg.model.model_name_or_path == str(begun)
    ids = torch.tensor([[70, 71, 72]])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(begun)(ids).logits
        both = adapters.whole(start.location, dtype="float32")(ids).logits
        base = AutoModelForCausalLM.from_pretrained(TINY)(ids).logits
    torch.testing.assert_close(merged, both)
    assert (merged - base).abs().max() > 1e-2
    written = (begun / WEIGHTS).stat().st_mtime_ns
    settle_adapter(cfg, start.location, tmp_path)  # resumed: as it is
    assert (begun / WEIGHTS).stat().st_mtime_ns == written


def test_supervised_training_says_the_same(copy: Callable[..., Path]) -> None:
    folder = copy(cut(WEIGHTS, 0.5))
    with pytest.raises(ConfigError) as error:
        sft.train(["+countdown=sft-tiny", f"model.model_name_or_path={folder}"])
    assert str(error.value) == refused(folder)


def test_what_a_value_model_starts_from_is_checked_without_its_head(copy: Callable[..., Path]) -> None:
    folder = copy(rewritten("config.json", architectures=["LlamaForSequenceClassification"]))
    words = ("algorithm=ppo", "trainer.max_steps=9")
    cfg = run_of("tiny", *words)
    cfg.critic.model = str(folder)
    assert checked_start(cfg).location.path == str(TINY)
    cut(WEIGHTS, 0.5)(folder)
    with pytest.raises(ConfigError, match=f"^critic.model={folder}: model.safetensors, of .* is cut off or damaged"):
        checked_start(cfg)


def test_a_run_that_began_with_an_adapter_is_found_whole_where_it_is_moved(
    adapter: Path, copy: Callable[..., Path]
) -> None:
    shutil.move(copy(), adapter / "start")
    rewritten("adapter_config.json", base_model_name_or_path="outputs/where-it-was/start")(adapter / "model")
    manifest.seal(adapter / "model", step=1)
    assert locate(str(adapter)).path == str(adapter / "start")


@pytest.fixture
def zero3() -> Iterator[Any]:
    """transformers in the state in which ZeRO-3's arguments leave it."""
    from transformers.integrations import deepspeed

    class Config:
        def is_zero3(self) -> bool:
            return True

    config = Config()
    deepspeed.set_hf_deepspeed_config(config)
    assert deepspeed.is_deepspeed_zero3_enabled()
    yield config
    assert deepspeed.is_deepspeed_zero3_enabled()  # as it was, whatever was checked in between
    deepspeed.unset_hf_deepspeed_config()


def test_under_zero3_a_model_is_checked_and_an_adapter_merged_as_elsewhere(
    adapter: Path, zero3: Any, tmp_path: Path
) -> None:
    folder = shutil.move(adapter / "model", tmp_path / "adapter")
    start = checked_start(run_of(folder))
    adapters.write_merged(start.location, tmp_path / "start")
    from safetensors import safe_open

    with safe_open(tmp_path / "start" / WEIGHTS, framework="pt") as file:
        assert file.get_slice("model.embed_tokens.weight").get_shape() == [306, 128]
