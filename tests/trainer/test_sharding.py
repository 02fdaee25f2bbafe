"""Weights shared out over two processes by FSDP2, or kept with the optimizer in the host's memory: the same model as without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinyzero_trl.config import free_port

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
REPO = Path(__file__).resolve().parents[2]
GRPO = REPO / "src" / "tinyzero_trl" / "grpo.py"
FSDP_ON_CPU = """
import sys
from accelerate import state
from accelerate.utils import DistributedType

# On CPUs accelerate takes FSDP for DDP without a word; PyTorch's own FSDP2 runs there, over gloo.
init = state.AcceleratorState.__init__

def __init__(self, *args, fsdp_plugin=None, **kwargs):
    init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type = state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin

state.AcceleratorState.__init__ = __init__
from tinyzero_trl import grpo, trainer
from tinyzero_trl.failures import exit_code_of

step = trainer.TinyZeroTrainer.training_step

def training_step(self, model, *args, **kwargs):
    assert all(type(weight).__name__ == "DTensor" for weight in model.parameters())
    return step(self, model, *args, **kwargs)

trainer.TinyZeroTrainer.training_step = training_step
if __name__ == "__main__":
    sys.exit(exit_code_of(grpo.train, sys.argv[1:]))
"""
DDP_GENERATED_AS_FSDP = """
import sys
from tinyzero_trl import grpo
from tinyzero_trl.failures import exit_code_of

# Where weights are shared out, transformers' own generate keeps the processes in step; its draws are others than our sampler's.
assert callable(grpo.generation.rollout_function)
grpo.generation.rollout_function = lambda cfg: None
if __name__ == "__main__":
    sys.exit(exit_code_of(grpo.train, sys.argv[1:]))
"""


@pytest.fixture
def words(tiny_llama: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "reward.py").write_text("def short(response: str) -> float:\n    return 1 / (1 + len(response))\n")
    return [
        "+countdown=grpo-tiny", f"model.model_name_or_path={tiny_llama}", "rewards.equation=0",
        f"rewards.{tmp_path}/reward.py:short=1", "data.num_train_rows=200", "trainer.eval_strategy=no",
        "trainer.eval_on_start=false", "trainer.max_steps=3", "trainer.per_device_train_batch_size=8",
        "trainer.gradient_accumulation_steps=2", "trainer.num_generations=4", "trainer.max_completion_length=8",
        "trainer.save_steps=2", "trainer.lr_scheduler_type=constant",
    ]  # fmt: skip


def launch(config: str, program: Path, *words: str) -> None:
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes=2"]
    launcher += [f"--config_file=recipes/accelerate_configs/{config}.yaml", f"--main_process_port={free_port()}"]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(["src", os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [*launcher, str(program), *words], cwd=REPO, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def assert_same_model(mine: Path, theirs: Path, start: Path) -> None:
    """Equal up to rounding, where training moved the weights a thousand times as far."""
    ours, others, before = (load_file(path / "model.safetensors") for path in (mine, theirs, start))
    moved = max(float((others[name] - before[name]).abs().max()) for name in before)
    assert ours.keys() >= others.keys() == before.keys()  # FSDP2 also saves the head that is tied to the embedding
    assert moved > 1e-4
    for name in others:
        torch.testing.assert_close(ours[name], others[name], rtol=0, atol=moved / 50)


def test_fsdp2_ends_with_the_model_that_ddp_does_and_goes_on_from_its_checkpoint(
    words: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    program, baseline = tmp_path / "fsdp.py", tmp_path / "ddp.py"
    program.write_text(FSDP_ON_CPU)
    baseline.write_text(DDP_GENERATED_AS_FSDP)
    sharded, whole = tmp_path / "sharded", tmp_path / "whole"
    launch("ddp", baseline, *words, f"output_dir={whole}")
    launch("fsdp2", program, *words, "trainer.max_steps=2", f"output_dir={sharded}")
    assert_same_model(sharded / "checkpoint-2", whole / "checkpoint-2", tiny_llama)
    launch("fsdp2", program, *words, f"trainer.resume_from_checkpoint={sharded}")
    assert_same_model(sharded / "model", whole / "model", tiny_llama)


@pytest.mark.parametrize("config", ["zero1-offload", "zero2-offload", "zero3-offload"])
def test_what_is_kept_in_the_hosts_memory_trains_as_on_the_device(
    config: str, words: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")  # compiles its Adam for the CPU on first use: two minutes
    offloaded, whole = tmp_path / "offloaded", tmp_path / "whole"
    launch("ddp", GRPO, *words, f"output_dir={whole}")
    launch(config, GRPO, *words, f"output_dir={offloaded}")
    assert_same_model(offloaded / "model", whole / "model", tiny_llama)
