"""vLLM inside the trainer's process on a CPU: the weights it samples from are those that are trained, at every step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

IS_TIED = {"whole": True, "merged": False, "adapter": True}
"""The model whose weights are synchronised in this way."""


@pytest.fixture(scope="module")
def trained(models: Callable[[bool], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("colocated")
    program = Path(__file__).with_name("colocated_program.py")
    command = [sys.executable, program, folder, *(f"{synced}={models(tied)}" for synced, tied in IS_TIED.items())]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=900, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("synced", IS_TIED)
def test_log_probabilities_are_the_trainers_at_every_step(synced: str, trained: Path) -> None:
    folder = trained / synced
    said = json.loads((folder / "said.json").read_text())
    print(said)
    assert len(said["gaps"]) == 4
    assert max(said["gaps"]) < 1e-4
    assert min(said["grad_norm"]) > 0
    assert said["effect"] > 1e-2 or synced == "whole"
    rows = [
        row for shard in sorted((folder / "rollouts").glob("*.parquet")) for row in pq.read_table(shard).to_pylist()
    ]
    assert all(row["weights_step"] == row["step"] - 1 for row in rows)
    assert len({row["seed"] for row in rows}) == len(rows)
    if synced == "whole":
        letters = set("abcdefghijklm")  # its stop strings
        stopped = [row for row in rows if letters & set(row["completion"])]
        assert stopped
        assert all(row["completion"][-1] in letters and not row["is_truncated"] for row in stopped)
        assert all(letters.isdisjoint(row["completion"][:-1]) for row in stopped)


class Sleeper:
    """Stands in for a GPU's engine, since vLLM's on a CPU does not sleep: what it is told, and whether that can be right."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from tinyzero_trl.generation import colocated

        self.events: list[str] = []
        self.awake: set[str] = set()
        monkeypatch.setattr(colocated.LLM, "sleep", self.sleep)
        monkeypatch.setattr(colocated.LLM, "wake_up", self.wake_up)
        monkeypatch.setattr(colocated.LLM, "generate", self.generate)
        self.llm = colocated.SeededLLM.__new__(colocated.SeededLLM)
        model = SimpleNamespace(load_weights=lambda weights: self.events.append("push"))
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=model))
        self.llm.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
        self.llm.reset_prefix_cache = lambda: True
        self.given: list[Any] = []

    def sleep(self, level: int) -> None:
        assert self.awake == {"weights", "kv_cache"}, "it sleeps already"
        self.awake.clear()
        self.events.append("sleep")

    def wake_up(self, tags: list[str]) -> None:
        assert not self.awake & set(tags), "it is awake"
        self.awake.update(tags)

    def generate(self, prompts: Any, sampling_params: Any, **kwargs: Any) -> list[Any]:
        assert self.awake == {"weights", "kv_cache"}
        self.events.append("generate")
        self.given += sampling_params
        done = SimpleNamespace(token_ids=[7], logprobs=None)
        return [SimpleNamespace(prompt_token_ids=[1], outputs=[done]) for _ in prompts]


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A colocated generation on such an engine, asleep as TRL leaves it, and the engine."""
    import torch

    from tinyzero_trl.generation.client import Rows
    from tinyzero_trl.generation.colocated import ColocatedGeneration

    engine = Sleeper(monkeypatch)
    generation = ColocatedGeneration.__new__(ColocatedGeneration)
    vars(generation).update(
        accelerator=SimpleNamespace(device=torch.device("cuda"), is_main_process=True), llm=engine.llm, model=torch.nn.Linear(1, 1), mode="colocate",
        enable_sleep_mode=True, _llm_weights_sleeping=True, tensor_parallel_size=1, temperature=1.0, top_p=1.0, top_k=0, min_p=None,
        repetition_penalty=1.0, max_completion_length=4, logprobs=0, generation_kwargs={}, structured_outputs_regex=None,
        _adapters=None, _step=0, _rows=Rows([1, 2], [0]),
    )  # fmt: skip
    monkeypatch.setattr(generation, "_iter_named_params", lambda: iter([("weight", torch.ones(1))]))
    return generation, engine


def test_weights_are_pushed_once_for_all_rollouts_of_a_batch(sleeper: Any) -> None:
    generation, engine = sleeper
    for _ in range(2):  # two batches
        with generation.awake():
            for _ in range(3):
                with generation.awake():  # an evaluation asks for it around each batch
                    generation.generate([[1], [1]], None, 1)
    assert engine.events == ["push", "generate", "generate", "generate", "sleep"] * 2
    assert generation._llm_weights_sleeping


def test_a_rollout_alone_sleeps_right_after_it_and_so_does_one_that_failed(sleeper: Any) -> None:
    generation, engine = sleeper
    generation.generate([[1], [1]], None, 1)
    assert engine.events == ["push", "generate", "sleep"]

    def fails() -> None:
        with generation.awake():
            generation.generate([[1], [1]], None, 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert engine.events[3:] == ["push", "generate", "sleep"]


@pytest.mark.parametrize("stop", [None, ["</answer>"]])
def test_tokens_become_text_only_where_a_stop_string_is_looked_for(sleeper: Any, stop: Any) -> None:
    from vllm.logprobs import FlatLogprobs, create_sample_logprobs

    from tinyzero_trl.generation.client import Rows

    generation, engine = sleeper
    generation._rows = Rows([1, 2], [0], stop or ())
    generation.generate([[1], [1]], None, 1)
    assert [(params.seed, params.detokenize, params.flat_logprobs) for params in engine.given] == [
        (seed, stop is not None, True) for seed in (1, 2)
    ]
    from trl.generation.vllm_generation import extract_logprobs
    from vllm.logprobs import Logprob

    flat = create_sample_logprobs(True)
    assert isinstance(flat, FlatLogprobs)
    flat.append({7: Logprob(-0.5, rank=2)})
    flat.append({9: Logprob(-0.25, rank=1)})
    output = SimpleNamespace(outputs=[SimpleNamespace(logprobs=flat)])
    assert extract_logprobs([output]) == ([[[-0.5], [-0.25]]], [[[7], [9]]])
