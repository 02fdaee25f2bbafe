"""Training on the real server: weights pushed at each step, log-probabilities the trainer's own, faults answered by doing the step again."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from servers import client_of, start
from stub import Stub, forward, reply

from tinyzero_trl.failures import DiskFull, ServerLost
from tinyzero_trl.generation.http_client import HttpClient


def shortness(completions: list[str], **columns: object) -> list[float]:
    return [1.0 / (1 + len(text)) for text in completions]


@pytest.fixture
def build(models: Callable[[bool], Path], server: Any, tmp_path: Path) -> Callable[..., Any]:
    """A trainer whose rollouts come from the shared server."""

    def make(
        *,
        max_failures: int = 2,
        folder: str = "run",
        generation: Any = None,
        http_client: Any = None,
        shared: Path = tmp_path,
        seconds_per_batch: float = 600,
        peft: Any = None,
        to: Any = None,
        ahead: int = 0,
        **settings: Any,
    ) -> Any:
        """to: a server of its own, which the run may restart; it takes adapters where there is one."""
        from datasets import Dataset
        from transformers import AutoTokenizer
        from trl import GRPOConfig

        from tinyzero_trl.generation.server_generation import Remote, ServerGeneration
        from tinyzero_trl.generation.weights import WeightFolder
        from tinyzero_trl.tasks.countdown import TASK
        from tinyzero_trl.trainer import TinyZeroTrainer

        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        model = models(True)
        remote = Remote(
            http_client or (to or server).http_client,
            WeightFolder(str(shared)),
            to,
            seconds_to_start=600,
            seconds_per_batch=seconds_per_batch,
        )
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
            peft_config=peft,
            vllm_generation=partial(
                generation or ServerGeneration, remote=remote, max_failures=max_failures,
                sends_adapter=peft is not None and to is not None, is_ahead=ahead > 0,
            ),
        )  # fmt: skip

    return make


def small_adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


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


def check_adapter(trainer: Any, folder: Path) -> None:
    """Trains, and checks that the server drew by the adapter of each step, on weights that nothing moves."""
    import torch

    below = {name: value.clone() for name, value in trainer.model.named_parameters() if not value.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in below.items())
    gaps = history(trainer, "sampling/sampling_logp_difference/max")
    client = trainer.vllm_generation.vllm_client
    print("gap by step", gaps, "seconds", history(trainer, "seconds/sync"), "bytes", client.num_bytes)
    assert len(gaps) == 4
    assert max(gaps) < 1e-4
    assert min(history(trainer, "grad_norm")) > 0
    ids = torch.arange(60, 100)[None]
    with torch.no_grad():
        logits = trainer.model(ids).logits
        with trainer.model.disable_adapter():
            assert (logits - trainer.model(ids).logits).abs().max() > 1e-2, "the adapter does nothing"
    assert all(row["weights_step"] == row["step"] - 1 for row in rollouts(folder))
    assert not list(trainer.vllm_generation.remote.folder.path.iterdir())


def test_an_adapter_in_the_weights_leaves_those_below_it_as_they_were(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    check_adapter(build(peft=small_adapter(), learning_rate=3e-2), tmp_path / "run")


def test_an_adapter_goes_by_itself_and_a_server_that_lost_it_is_given_it_again(
    build: Callable[..., Any], models: Callable[[bool], Path], server: Any, tmp_path: Path
) -> None:
    from tinyzero_trl.generation.http_client import HttpClient, ServerError
    from tinyzero_trl.generation.server_generation import ServerGeneration
    from tinyzero_trl.generation.weights import WeightFolder

    class Forgetful(ServerGeneration):
        """Before the third rollout, or with one in flight, the server is what a restart makes it: without the adapter, with no version."""

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            if self._step == 2 and not self.num_faults:
                self._forget()
            return super().generate(*args, **kwargs)

        def request(self, prompts: Any) -> None:
            super().request(prompts)
            if self._step == 1:
                self._forget()

        def _forget(self) -> None:
            http_client = self.vllm_client.http_client
            with contextlib.suppress(ServerError):  # it answers with a sentence
                http_client.post("/v1/unload_lora_adapter", {"lora_name": self.vllm_client.version})
            http_client.post("/update_weight_version", {"new_version": "default"})

    taking = start(models(True), tmp_path / "taking", adapter_rank=8)
    try:
        settings = {"peft": small_adapter(), "learning_rate": 3e-2, "to": taking}
        check_adapter(build(folder="straight", **settings), tmp_path / "straight")
        disturbed = build(folder="disturbed", generation=Forgetful, **settings)
        check_adapter(disturbed, tmp_path / "disturbed")
        assert history(disturbed, "server/faults") == [0, 0, 1, 0]
        build(folder="ahead", ahead=1, **settings).train()
        disturbed = build(folder="ahead, disturbed", ahead=1, generation=Forgetful, **settings)
        disturbed.train()
        assert history(disturbed, "server/faults") == [0, 0, 1, 0]
        names = ("straight", "disturbed", "ahead", "ahead, disturbed")
        texts = {name: [row["completion"] for row in rollouts(tmp_path / name)] for name in names}
        assert texts["straight"] == texts["disturbed"]
        assert texts["ahead"] == texts["ahead, disturbed"]
        for route in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            with pytest.raises(ServerError, match="401"):
                HttpClient(taking.url, token="not the token", seconds_per_call=10).post(route, {"lora_name": "policy"})
        with pytest.raises(ServerError, match="started to take an adapter, and this run sends whole weights"):
            client_of(taking, WeightFolder(str(tmp_path)))
        with pytest.raises(ServerError, match="started to take whole weights, and this run sends an adapter"):
            client_of(server, WeightFolder(str(tmp_path)), sends_adapter=True)
    finally:
        taking.stop()


def test_a_server_that_lost_the_weights_in_mid_run_is_given_them_again_and_nothing_else_changes(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    from tinyzero_trl.generation.server_generation import ServerGeneration

    class Forgetful(ServerGeneration):
        """Before each rollout, and once in the middle of one, the server is what a restart makes it."""

        num_told = 0

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            http_client = self.vllm_client.http_client
            http_client.post("/update_weight_version", {"new_version": "default"})
            check = self.vllm_client.check_version

            def then_forget() -> None:
                check()
                type(self).num_told += 1
                if self.num_told == 3:
                    http_client.post("/update_weight_version", {"new_version": "default"})

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


def test_a_server_that_answers_500_breaks_off_and_hangs_in_mid_run_changes_nothing(
    build: Callable[..., Any], server: Any, tmp_path: Path
) -> None:
    plan = {
        "/update_weights": deque([None, 500]),  # in the second step
        "/v1/completions": deque([None] * 20 + ["drip"] + [None] * 30 + ["cut"]),  # in the second, in the third
        "/start_weight_update": deque([None] * 5 + [503]),  # in the third, after the cut
    }
    proxy = Stub()

    def disturb(request: Any) -> None:
        left = plan.get(request.path.split("?")[0])
        fault = left.popleft() if left else None
        if isinstance(fault, int):
            reply(request, fault, b"no")
        elif fault == "drip":
            proxy.drip(request)
        elif fault == "cut":
            request.connection.close()
        else:
            forward(request, server.url)

    straight = build(folder="straight")
    straight.train()
    proxy.behave = disturb
    http_client = HttpClient(proxy.url, token=server.token_file, seconds_per_call=15)
    disturbed = build(folder="disturbed", http_client=http_client, seconds_per_batch=15)
    disturbed.train()
    proxy.stop()
    assert not any(plan.values())
    assert sum(history(disturbed, "server/faults")) == 4
    ours, theirs = rollouts(tmp_path / "disturbed"), rollouts(tmp_path / "straight")
    assert [(row["completion"], row["reward"]) for row in ours] == [
        (row["completion"], row["reward"]) for row in theirs
    ]
    assert all(row["weights_step"] == row["step"] - 1 for row in ours)
    assert max(history(disturbed, "sampling/sampling_logp_difference/max")) < 1e-4


def test_faults_while_a_batch_is_generated_ahead_change_nothing_and_it_is_in_the_checkpoint(
    build: Callable[..., Any], server: Any, tmp_path: Path
) -> None:
    """A batch has 16 completions; the second is in flight while the first is trained, and found lost when newer weights are there."""
    plan = {
        "/v1/completions": deque([None] * 20 + ["drip"] + [None] * 60 + ["forget"]),
        "/update_weights": deque([None] * 3 + [500]),  # the second batch's, again; the third's
    }
    proxy = Stub()

    def disturb(request: Any) -> None:
        left = plan.get(request.path.split("?")[0])
        fault = left.popleft() if left else None
        if isinstance(fault, int):
            reply(request, fault, b"no")
        elif fault == "drip":
            proxy.drip(request)
        else:
            if fault == "forget":  # as after a restart
                server.http_client.post("/update_weight_version", {"new_version": "default"})
            forward(request, server.url)

    straight = build(folder="straight", ahead=1, save_strategy="steps", save_steps=2, max_steps=5)
    straight.train()
    rows = rollouts(tmp_path / "straight")
    assert [max(row["step"] - 2, 0) for row in rows] == [row["weights_step"] for row in rows]
    gaps = history(straight, "sampling/sampling_logp_difference/max")
    print("gap by step", gaps, "seconds waited", history(straight, "seconds/generation"))
    assert gaps[0] < 1e-4 < min(gaps[1:]), "of later steps, it is how far the policy moved"

    proxy.behave = disturb
    http_client = HttpClient(proxy.url, token=server.token_file, seconds_per_call=15)
    disturbed = build(folder="disturbed", ahead=1, http_client=http_client, seconds_per_batch=15, max_steps=5)
    disturbed.train()
    proxy.stop()
    assert not any(plan.values())
    assert sum(history(disturbed, "server/faults")) == 3
    same = ("completion", "reward", "weights_step", "seed")
    assert [[row[key] for key in same] for row in rollouts(tmp_path / "disturbed")] == [
        [row[key] for key in same] for row in rows
    ]

    checkpoint = tmp_path / "straight" / "checkpoint-2"
    resumed = build(folder="resumed", ahead=1, max_steps=5)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    after = [row for row in rows if row["step"] > 2]
    assert [[row[key] for key in same] for row in rollouts(tmp_path / "resumed")] == [
        [row[key] for key in same] for row in after
    ]


def test_a_server_that_is_killed_with_a_batch_in_flight_draws_it_again_by_the_same_older_weights(
    build: Callable[..., Any], models: Callable[[bool], Path], tmp_path: Path
) -> None:
    from tinyzero_trl.generation.server_generation import ServerGeneration

    class Killed(ServerGeneration):
        """In the second step vLLM gets SIGKILL right after it is asked for the third batch."""

        def request(self, prompts: Any) -> None:
            super().request(prompts)
            if self._step == 1:
                for process in psutil.Process(own._supervisor.pid).children(recursive=True):
                    process.kill()

    straight = build(folder="straight", ahead=1)
    straight.train()
    own = start(models(True), tmp_path / "own")
    try:
        killed = build(folder="killed", ahead=1, generation=Killed, to=own)
        killed.train()
    finally:
        own.stop()
    assert history(killed, "server/faults") == [0, 0, 1, 0]
    same = ("completion", "reward", "weights_step", "seed")
    ours, theirs = (
        [[row[key] for key in same] for row in rollouts(tmp_path / name)] for name in ("killed", "straight")
    )
    assert ours == theirs


def test_a_server_that_stays_lost_saves_the_run_and_ends_it(
    build: Callable[..., Any], tmp_path: Path, server: Any
) -> None:
    from tinyzero_trl.generation.http_client import ServerError
    from tinyzero_trl.generation.server_generation import ServerGeneration
    from tinyzero_trl.storage import manifest

    class Broken(ServerGeneration):
        """From the third step on every request fails."""

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            if self._step >= 2:

                def refuse(*args: Any, **kwargs: Any) -> Any:
                    raise ServerError("it answered 500")

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
    from tinyzero_trl.generation import weights
    from tinyzero_trl.storage import manifest

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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", place], capture_output=True).returncode:
        pytest.skip("a small file system needs root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_real_disk_that_fills_up_in_mid_run_saves_the_run_and_ends_it_with_8(
    build: Callable[..., Any], small_disk: Path, tmp_path: Path
) -> None:
    from tinyzero_trl.generation.server_generation import ServerGeneration
    from tinyzero_trl.storage import manifest

    class Filled(ServerGeneration):
        """Before the third transfer of weights somebody fills the disk."""

        def sync_weights(self) -> None:
            if self._step == 2:
                with contextlib.suppress(OSError), (small_disk / "of somebody else").open("wb", buffering=0) as file:
                    while file.write(b"x" * 4096):
                        pass
            super().sync_weights()

    with pytest.raises(DiskFull, match=r"\(0 MiB left, .*checkpoint-2 is saved") as stop:
        build(generation=Filled, shared=small_disk).train()
    assert stop.value.exit_code == 8
    assert manifest.newest_usable(tmp_path / "run").path == tmp_path / "run" / "checkpoint-2"
    assert not list(small_disk.glob("*/*.safetensors"))


def test_two_runs_on_one_server_are_told_apart(build: Callable[..., Any], server: Any, tmp_path: Path) -> None:
    from tinyzero_trl.generation.client import ServerTaken
    from tinyzero_trl.generation.server_generation import ServerGeneration

    class Visited(ServerGeneration):
        """Another run pushes its weights while this one generates its second batch."""

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            if self._step == 1:
                client_of(server, run="other").http_client.post("/update_weight_version", {"new_version": "other:9:1"})
            return super().generate(*args, **kwargs)

    with pytest.raises(ServerTaken, match="give each run a server of its own"):
        build(generation=Visited).train()
