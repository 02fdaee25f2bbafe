"""docs/minimal_grpo.py does what the trainer does when every feature is left out: same seed, same batch, same update."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinyzero_trl.config import compose, features, trainer_arguments
from tinyzero_trl.rewards import for_trl
from tinyzero_trl.trainer import TinyZeroTrainer

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "minimal_grpo.py"
NUM_STEPS, NUM_PROMPTS, SEED = 2, 8, 0
RECIPE = [
    *(
        "+countdown=grpo-tiny",
        f"trainer.max_steps={NUM_STEPS}",
        f"trainer.per_device_train_batch_size={NUM_PROMPTS * 2}",
    ),
    *("trainer.eval_strategy=no", "trainer.eval_on_start=false", "trainer.save_strategy=no"),
]


@pytest.fixture(scope="module")
def minimal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal_grpo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(model: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten().clone() for value in model.parameters()])


def of_the_trainer(minimal: ModuleType, rows: list[dict[str, Any]], folder: Path, *words: str) -> tuple[Any, list[Any]]:
    """The weights after grpo-tiny's steps on completions that the script draws, and the prompts and completions of each step."""
    cfg = compose([*RECIPE, *words])
    args = trainer_arguments(cfg, program="grpo", reward_weights=[1.0])
    args.output_dir = str(folder)
    trainer = TinyZeroTrainer(
        model=str(minimal.TINY),
        reward_funcs=[for_trl(minimal.equation, name="equation")],
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(minimal.TINY, padding_side="left"),
        **features(cfg),
    )
    draw, batches = torch.Generator().manual_seed(SEED), []

    def generate(prompt_ids: list[list[int]], *arguments: Any, **options: Any) -> Any:
        completion_ids = minimal.sample(trainer.model, prompt_ids, eos=0, draw=draw)
        batches.append((prompt_ids, completion_ids))
        return completion_ids, None

    trainer._generate_single_turn = generate
    trainer.train()
    return weights(trainer.model), batches


def of_the_script(
    minimal: ModuleType, rows: list[dict[str, Any]], batches: list[Any], optimizer_class: type, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights before and after the script's steps on the same prompts; its completions are the trainer's, drawn anew."""
    tokenizer = AutoTokenizer.from_pretrained(minimal.TINY)
    row_by_prompt = {tuple(tokenizer(row["prompt"])["input_ids"]): row for row in rows}
    model = AutoModelForCausalLM.from_pretrained(minimal.TINY, dtype=torch.float32)
    before, draw = weights(model), torch.Generator().manual_seed(SEED)
    optimizer = optimizer_class(model.parameters(), **settings)
    schedule = minimal.falling(optimizer, num_steps=NUM_STEPS)
    for prompt_ids, completion_ids in batches:
        assert minimal.sample(model, prompt_ids, eos=0, draw=draw) == completion_ids
        rewards_N = minimal.score(tokenizer, [row_by_prompt[tuple(ids)] for ids in prompt_ids], completion_ids)
        advantages_N = minimal.advantages(rewards_N.view(NUM_PROMPTS, -1)).flatten()
        assert 0 < advantages_N.ne(0).sum() < len(advantages_N)
        minimal.update(model, optimizer, prompt_ids, completion_ids, advantages_N)
        schedule.step()
    return before, weights(model)


@pytest.fixture(scope="module")
def rows(minimal: ModuleType) -> list[dict[str, Any]]:
    return list(islice(minimal.problems(SEED), NUM_STEPS * NUM_PROMPTS))


@pytest.mark.slow
def test_the_script_moves_every_weight_as_the_trainer_does(
    minimal: ModuleType, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    theirs, batches = of_the_trainer(minimal, rows, tmp_path, "trainer.optim=sgd", "trainer.learning_rate=1.0")
    before, after = of_the_script(minimal, rows, batches, torch.optim.SGD, lr=1.0)
    assert (after - before).abs().max() > 1e-4
    assert (after - theirs).abs().max() <= 1e-6


@pytest.mark.slow
def test_the_script_moves_the_model_as_the_trainer_does_with_the_optimizer_of_the_recipe(
    minimal: ModuleType, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Adam takes a full step where the gradient is only rounding, so the distance is measured over all weights together."""
    theirs, batches = of_the_trainer(minimal, rows, tmp_path)
    before, after = of_the_script(minimal, rows, batches, torch.optim.AdamW, lr=5e-4, weight_decay=0.0)
    assert (after - theirs).norm() <= 1e-3 * (after - before).norm()


def test_the_script_fits_on_two_hundred_lines_and_stands_on_torch_transformers_and_the_task_alone() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    imported = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    own = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert own == {"torch", "transformers", "tinyzero_trl.tasks.countdown"}


@pytest.mark.slow
def test_the_script_runs_by_its_command(tmp_path: Path) -> None:
    words = ["--steps", "1", "--prompts", "2", "--save", str(tmp_path / "model")]
    run = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("step   1")
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--steps 0", "--steps and --prompts must be 1 or more"),
        ("--lr -1", "--lr between 0 and 1"),
        ("--model /no/such", "--model /no/such is no folder of a model"),
        ("--save /", "--save / must be a new folder"),
    ],
)
def test_the_script_refuses_a_value_in_one_line_before_a_model_loads(
    minimal: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["minimal_grpo.py", *words.split()])
    monkeypatch.setattr(minimal, "AutoModelForCausalLM", None)
    with pytest.raises(SystemExit, match="2"):
        minimal.main()
    assert said in capsys.readouterr().err.splitlines()[-1]
