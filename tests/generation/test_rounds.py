"""Training on the real server: weights pushed at each step, log-probabilities the trainer's own, faults answered by doing the step again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from servers import client_of

from tinyzero_trl.failures import DiskFull, ServerLost


def shortness(completions: list[str], **columns: object) -> list[float]:
    return [1.0 / (1 + len(text)) for text in completions]


@pytest.fixture
def build(models: Callable[[bool], Path], server: Any, tmp_path: Path) -> Callable[..., Any]:
    """A trainer whose rollouts come from the shared server."""

    def make(*, max_failures: int = 2, folder: str = "run", generation: Any = None, **settings: Any) -> Any:
        from datasets import Dataset
        from transformers import AutoTokenizer
        from trl import GRPOConfig

        from tinyzero_trl.generation.remote import Remote, ServerGeneration
        from tinyzero_trl.generation.weights import WeightFolder
        from tinyzero_trl.tasks.countdown import TASK
        from tinyzero_trl.trainer import TinyZeroTrainer

        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        model = models(True)
        remote = Remote(server.calls, WeightFolder(str(tmp_path)), None, seconds_to_start=60, seconds_per_batch=60)
        rows = [{"prompt": f"{n} + {n + 3} =", "prefill": "", "nums": [n, n + 3], "target": 9} for n in range(16)]
        values: dict[str, Any] = {
            "output_dir": str(tmp_path / folder), "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
            "num_generations": 4, "max_completion_length": 12, "max_steps": 4, "learning_rate": 3e-3, "logging_steps": 1,
            "save_strategy": "no", "report_to": "none", "bf16": False, "use_cpu": True, "seed": 7, "disable_tqdm": True,
            "gradient_checkpointing": False, "use_vllm": True, "vllm_mode": "server", **settings,
        }  # fmt: skip
        return TinyZeroTrainer(
            model=str(model), reward_funcs=shortness, args=GRPOConfig(**values), train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"), task=TASK,
            vllm_generation=partial(generation or ServerGeneration, remote=remote, max_failures=max_failures),
        )  # fmt: skip

    return make


def history(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def rollouts(folder: Path) -> list[dict[str, Any]]:
    shards = sorted((folder / "rollouts").glob("train-*.parquet"))
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]


def test_each_step_is_trained_on_rollouts_of_its_own_weights(build: Callable[..., Any], tmp_path: Path) -> None:
    trainer = build()
    trainer.train()
    gaps = history(trainer, "sampling/sampling_logp_difference/max")
    print("gap by step", gaps, "seconds a transfer", history(trainer, "seconds/sync"))
    assert len(gaps) == 4
    assert max(gaps) < 1e-4
    assert min(history(trainer, "grad_norm")) > 0
    rows = rollouts(tmp_path / "run")
    assert {row["weights_step"] for row in rows} == {0, 1, 2, 3}
    assert all(row["weights_step"] == row["step"] - 1 for row in rows)
    assert len({row["seed"] for row in rows}) == len(rows)
    assert not list(trainer.vllm_generation.remote.folder.path.iterdir()), "weights are not left lying about"


def test_a_server_that_lost_the_weights_in_mid_run_is_given_them_again_and_nothing_else_changes(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    from tinyzero_trl.generation.remote import ServerGeneration

    class Forgetful(ServerGeneration):
        """Before each rollout, and once in the middle of one, the server is what a restart makes it."""

        num_told = 0

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            calls = self.vllm_client.calls
            calls.post("/update_weight_version", {"new_version": "default"})
            check = self.vllm_client.check_version

            def then_forget() -> None:
                check()
                type(self).num_told += 1
                if self.num_told == 3:
                    calls.post("/update_weight_version", {"new_version": "default"})

            self.vllm_client.check_version = then_forget
            return super().generate(*args, **kwargs)

    straight = build(folder="straight")
    straight.train()
    disturbed = build(folder="disturbed", generation=Forgetful)
    disturbed.train()
    assert sum(history(disturbed, "server/faults")) >= 5
    assert sum(history(straight, "server/faults")) == 0
    ours, theirs = rollouts(tmp_path / "disturbed"), rollouts(tmp_path / "straight")
    assert [row["completion"] for row in ours] == [row["completion"] for row in theirs]
    assert [row["reward"] for row in ours] == [row["reward"] for row in theirs]
    assert max(history(disturbed, "sampling/sampling_logp_difference/max")) < 1e-4


def test_a_server_that_stays_lost_saves_the_run_and_ends_it(
    build: Callable[..., Any], tmp_path: Path, server: Any
) -> None:
    from tinyzero_trl import manifest
    from tinyzero_trl.generation.calls import ServerFault
    from tinyzero_trl.generation.remote import ServerGeneration

    class Broken(ServerGeneration):
        """From the third step on every request fails."""

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            if self._step >= 2:

                def refuse(*args: Any, **kwargs: Any) -> Any:
                    raise ServerFault("it answered 500")

                self.vllm_client._complete = refuse
            return super().generate(*args, **kwargs)

    trainer = build(generation=Broken, max_failures=2)
    with pytest.raises(ServerLost, match="failed 3 times in a row: it answered 500; checkpoint-2 is saved"):
        trainer.train()
    found = manifest.newest_usable(tmp_path / "run").path
    assert found == tmp_path / "run" / "checkpoint-2"
    straight = build(folder="straight")
    straight.train()
    resumed = build()
    resumed.train(resume_from_checkpoint=str(found))
    texts = [[row["completion"] for row in rollouts(tmp_path / name)] for name in ("run", "straight")]
    assert texts[0] == texts[1]


def test_weights_that_do_not_fit_save_the_run_and_end_it(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyzero_trl import manifest
    from tinyzero_trl.generation import weights

    save, num_saved = weights.save_file, [0]

    def full(*arguments: Any) -> None:
        num_saved[0] += 1
        if num_saved[0] > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(DiskFull, match="generation.shared_folder; checkpoint-2 is saved"):
        build().train()
    assert manifest.newest_usable(tmp_path / "run").path == tmp_path / "run" / "checkpoint-2"


def test_two_runs_on_one_server_are_told_apart(build: Callable[..., Any], server: Any, tmp_path: Path) -> None:
    from tinyzero_trl.generation.client import ServerTaken
    from tinyzero_trl.generation.remote import ServerGeneration

    class Visited(ServerGeneration):
        """Another run pushes its weights while this one generates its second batch."""

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            if self._step == 1:
                client_of(server, run="other").calls.post("/update_weight_version", {"new_version": "other:9:1"})
            return super().generate(*args, **kwargs)

    with pytest.raises(ServerTaken, match="give each run a server of its own"):
        build(generation=Visited).train()
