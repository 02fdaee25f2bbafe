"""The methods of TRL and transformers that the trainer stands on are those it was written against."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from typing import Any

import pytest
import torch
from transformers import Trainer
from trl import GRPOTrainer
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import RepeatSampler

RELIED_ON = {
    (GRPOTrainer, "_tokenize_prompts"): "9868a458d90c60a7",
    (GRPOTrainer, "_generate"): "c4ec3b706ffc49a9",
    (GRPOTrainer, "_calculate_rewards"): "5c0f00892dc9b836",
    (GRPOTrainer, "_generate_and_score_completions"): "25819d4f6f61412b",
    (GRPOTrainer, "_prepare_inputs"): "8fbf26ba768fa77f",
    (GRPOTrainer, "training_step"): "087c04bcda30acd1",
    (GRPOTrainer, "_compute_loss"): "b5e91c41bd352c24",
    (GRPOTrainer, "_get_per_token_logps_and_entropies"): "1621a8c46bdd3d57",
    (GRPOTrainer, "compute_loss"): "3b04d42aa817611a",
    (GRPOTrainer, "_get_train_sampler"): "6e7dced2603e0e54",
    (RepeatSampler, "__iter__"): "b215b7a2da09c324",
    (GRPOTrainer, "_load_optimizer_and_scheduler"): "ec6be8bfe01fedba",
    (Trainer, "_issue_warnings_after_load"): "30671450d2aa03e9",
    (Trainer, "_inner_training_loop"): "903df95ee2c095b2",
    (Trainer, "_load_rng_state"): "5f5775818e55973b",
    (Trainer, "_maybe_log_save_evaluate"): "32431bef3bc5d15f",
    (GRPOTrainer, "log"): "7b3a5c5325c03aae",
    (GRPOTrainer, "_save_checkpoint"): "188a83914894f893",
    (Trainer, "training_step"): "4cb00a8924b18f11",
    (Trainer, "_save_checkpoint"): "16d32ae8ca61bd28",
    (Trainer, "_save"): "c6a2382c62c46fdb",
    (Trainer, "_get_grad_norm"): "158fb528d1513ba6",
    (Trainer, "_run_epoch"): "e835964fb4b0d9f1",
    (Trainer, "_load_optimizer_and_scheduler"): "d36a4f7d0280eb51",
    (Trainer, "evaluate"): "f51fe14ca8047866",
    (VLLMGeneration, "__init__"): "0d9dc1bc04123f3c",
    (VLLMGeneration, "_init_vllm"): "8152349371c9a872",
    (VLLMGeneration, "_iter_named_params"): "29841e6325d3a7a7",
    (VLLMGeneration, "sync_weights"): "ef20351269b74d91",
    (VLLMGeneration, "generate"): "8247166dbaf8fd09",
    (VLLMClient, "__init__"): "dd2386a3d32f9fc7",
    (VLLMClient, "_get"): "1b283ac16dda0c54",
    (VLLMClient, "_post"): "5e6d8e923e3bc987",
    (VLLMClient, "check_server"): "c75be9cb4481cd5f",
    (VLLMClient, "get_server_info"): "f346e25e5abe8bb4",
    (VLLMClient, "init_communicator"): "b20aa59f77733f48",
    (VLLMClient, "_start_weight_update"): "2e71f8a52c060f98",
    (VLLMClient, "_finish_weight_update"): "b2a0cc5520e322e0",
    (VLLMClient, "update_named_params"): "4a2ebdfdbca31468",
    (VLLMClient, "reset_prefix_cache"): "758e693f17c70e68",
    (VLLMClient, "generate"): "627e4ecf9e88dc1a",
    (VLLMClient, "close_communicator"): "a3eecf232192cb43",
    (GRPOTrainer, "_generate_single_turn"): "67d8f2f5392a0f8e",
}
"""Hash of signature and body by method, without docstrings, comments and layout."""


def digest(method: Any) -> str:
    tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:]  # type: ignore[attr-defined]
    return hashlib.blake2b(ast.dump(tree).encode(), digest_size=8).hexdigest()


@pytest.mark.parametrize(("owner", "name"), RELIED_ON, ids=lambda value: getattr(value, "__name__", value))
def test_the_library_has_not_moved_under_the_trainer(owner: type, name: str) -> None:
    now = digest(getattr(owner, name))
    assert now == RELIED_ON[owner, name], (
        f"{owner.__name__}.{name} has changed: read it again beside the override in trainer/ or generation/, "
        f"then write {now} into this table"
    )


def test_the_trainer_is_one_class_and_calls_each_method_it_overrides_once() -> None:
    from tinyzero_trl.trainer import TinyZeroTrainer

    ours = [owner for owner in TinyZeroTrainer.__mro__ if owner.__module__.startswith("tinyzero_trl")]
    assert ours == [TinyZeroTrainer]
    overridden = {
        name: inspect.getsource(method)
        for name, method in vars(TinyZeroTrainer).items()
        if inspect.isfunction(method) and hasattr(GRPOTrainer, name)
    }
    assert len(overridden) > 20
    for name, source in overridden.items():
        assert source.count("super()") == 1, f"{name} calls super() {source.count('super()')} times"


def test_torch_still_cannot_load_onto_a_numbered_cpu_without_us(tmp_path: Any) -> None:
    """trainer/checkpoints.py registers `cpu:N`; when torch knows it, that line can go."""
    import subprocess
    import sys

    torch.save(torch.ones(1), tmp_path / "tensor.pt")
    program = f"import torch; torch.load({str(tmp_path / 'tensor.pt')!r}, map_location=torch.device('cpu', 0))"
    bare = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "don't know how to restore data location" in bare.stderr
    import tinyzero_trl.trainer.checkpoints  # noqa: F401

    torch.load(tmp_path / "tensor.pt", map_location=torch.device("cpu", 0))
