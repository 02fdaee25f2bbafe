"""Measurements that need a GPU, in one command and at most twelve minutes: a Markdown table of what was measured and what it should be.

python docs/benchmarks/gpu_proof.py --out docs/benchmarks/gpu_proof.md
python docs/benchmarks/gpu_proof.py --device cpu --small --out /tmp/dry.md     # the same on a CPU with tiny shapes, numbers without meaning

Needs no network: the models have random weights in the shapes of Qwen2.5, and the tiny model's tokenizer. Each measurement is a
process of its own. A part that fails, or takes longer than it may, has a row that says so; the table is written after each part.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
MINUTES = 12.0
GIB = 2**30

GRADIENT_BOUND = 0.03
"""Bound on |ours - stock| / |stock| over all gradients in bf16: both sum other micro-batches, and bf16 has 8 bits. README.md says what was measured."""
NEARNESS_BOUND = 1.25
"""Bound on the distance of our gradient from the float32 gradient, relative to that of stock's bf16."""
MEMORY_TOLERANCE = 0.20
LEAST_GAIN = 0.20
"""Points of accuracy, of 1, that the demo must gain; on a CPU it gains 0.55."""
SAMPLER_GAP = 0.05
"""Mean difference (nats) of a token's log-probability between vLLM and the trainer, both in bf16."""

NO_PAUSES = (
    "trainer.eval_strategy=no",
    "trainer.eval_on_start=false",
    "trainer.save_strategy=no",
    "data.num_eval_rows=0",
)
LORA = (
    *("model.use_peft=true", "model.lora_r=32", "model.lora_alpha=64", "model.lora_dropout=0.0"),
    "model.lora_target_modules=[all-linear]",
)
PROMPT_TOKENS = 26
"""Tokens of every prompt of `+countdown=grpo-tiny` with the tiny model's tokenizer."""
PARITY = '''"""Random weights solve nothing, so this pays for what they do: half of all completions, at random."""


def parity(response, *, completion_ids=None):
    return float(sum(completion_ids or []) % 2)
'''


@dataclass
class Row:
    """One line of the table."""

    part: str
    what: str
    value: str
    wanted: str = ""
    holds: bool | None = None
    """True if the value is the wanted one; None if nothing is wanted."""


@dataclass
class Proof:
    """Facts that the parts need, and a way to run a measurement in a process of its own."""

    device: str
    is_small: bool
    folder: Path
    deadline: float = field(default_factory=lambda: time.monotonic() + MINUTES * 60)
    """The deadline of the part that runs, on the monotonic clock."""

    def words(self, model: str, *more: str) -> list[str]:
        """A command line of a short run of `+countdown=grpo-tiny` with that model in bf16 on the device; later words win."""
        return [
            *("+countdown=grpo-tiny", f"model.model_name_or_path={self.folder / model}", *NO_PAUSES),
            *(f"trainer.use_cpu={str(self.device == 'cpu').lower()}", "trainer.bf16=true", "model.dtype=float32"),
            *("data.num_train_rows=256", "give_up_after=0", "trainer.learning_rate=1e-6", "trainer.logging_steps=1"),
            *more,
        ]

    def apart(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """The result of a function of this file, computed in a process of its own. Raises: RuntimeError with the error's one line."""
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        words = [str(HERE / "gpu_proof.py"), "--do", function.__name__, "--arguments", json.dumps(arguments)]
        self.run([sys.executable, *words, "--result", str(result)])
        return json.loads(result.read_text(encoding="utf-8"))

    def tinyzero(self, *words: str) -> str:
        """Standard output of a `tinyzero` command. Raises: RuntimeError with the error's one line."""
        return self.run([sys.executable, "-m", "tinyzero_trl.cli", *words])

    def run(self, command: Sequence[str]) -> str:
        left = self.deadline - time.monotonic()
        log = self.folder / "log.txt"
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=self.folder, env=environment(),
                start_new_session=True,
            )  # fmt: skip
            try:
                said, _ = process.communicate(timeout=max(left, 1.0))
            except subprocess.TimeoutExpired:
                raise RuntimeError("took longer than its share of the minutes") from None
            finally:
                # What it started (a trainer, a server) ends with it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            raise RuntimeError(last_line(log.read_text(encoding="utf-8", errors="replace"), process.returncode))
        return said


def environment() -> dict[str, str]:
    """Variables of every measurement: this checkout's code first, no network, one line for each step."""
    path = os.pathsep.join(filter(None, [str(REPO / "src"), os.environ.get("PYTHONPATH", "")]))
    return {
        **{"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"},
        **{"HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "200"},
        **os.environ,
        "PYTHONPATH": path,
    }


def last_line(log: str, code: int) -> str:
    """The reason why a process ended, in one line: the last line that names an error, else the last there is."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0] or line.startswith(("tinyzero", "grpo"))]
    said = (named or lines or ["it said nothing"])[-1]
    return f"exit code {code}: {said[:300]}"


# Measurements: each runs in a process of its own, and may import what it likes.


def make_models(folder: str, is_small: bool, device: str) -> dict[str, int]:
    """Weights of each model made below `folder`: random, in bf16, of Qwen2.5's sizes; and the tiny model's tokenizer."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from tinyzero_trl.estimate.workload import KNOWN, Shape
    from tinyzero_trl.models import load_path

    disable_progress_bar()
    weights = {}
    for name in ("0.5B", "1.5B"):
        shape = Shape(2, 64, 4, 2, 16, 128, 4096, True) if is_small else KNOWN[f"Qwen/Qwen2.5-{name}"]
        # One token in so many ends a response: random weights draw all tokens alike, so lengths are geometric with that mean.
        mean_length = 8 if is_small else 128
        ends = [0, *range(shape.vocab - shape.vocab // mean_length, shape.vocab)]
        config = Qwen2Config(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=32768,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            tie_word_embeddings=shape.is_tied,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
        )
        torch.manual_seed(0)
        with torch.device(device):
            model = Qwen2ForCausalLM(config).to(torch.bfloat16)
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=1, do_sample=True)
        model.save_pretrained(Path(folder) / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(load_path("tiny")) / file, Path(folder) / name / file)
        weights[name] = sum(parameter.numel() for parameter in model.parameters())
        del model
    (Path(folder) / "parity.py").write_text(PARITY, encoding="utf-8")
    return weights


def gradients(model: str, device: str, is_small: bool) -> dict[str, float]:
    """Distances of gradients of one optimizer step on the same rollouts: ours and stock TRL's in bf16, and stock's in float32."""
    import datasets
    import forced
    import numpy as np
    import torch
    from accelerate.state import AcceleratorState
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from tinyzero_trl.trainer import TinyZeroTrainer

    datasets.disable_progress_bars()
    longest = 24 if is_small else 384
    lengths = forced.DISTRIBUTIONS["short"]
    scale = lengths.scale(longest)
    rng = np.random.default_rng(0)
    size = forced.NUM_PROMPTS * forced.NUM_GENERATIONS
    vocabulary = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    window = forced.window(
        lengths.draw(rng, size, scale=scale),
        prompt_tokens=max(1, round(forced.PROMPT_TOKENS * scale)),
        num_constant=2,
        vocabulary=vocabulary,
        rng=rng,
    )

    class Keep(TrainerCallback):
        """The gradients as the optimizer is about to see them."""

        kept: dict[str, torch.Tensor]

        def on_pre_optimizer_step(self, *args: Any, model: torch.nn.Module, **kwargs: Any) -> None:
            self.kept = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}

    def of(trainer_class: type, *, is_half: bool) -> dict[str, torch.Tensor]:
        AcceleratorState._reset_state(reset_partial_state=True)  # it holds the precision of the trainer before
        with tempfile.TemporaryDirectory() as folder:
            args = GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=8,
                gradient_accumulation_steps=size // 8,
                num_generations=forced.NUM_GENERATIONS,
                max_steps=1,
                max_completion_length=longest,
                loss_type="dr_grpo",
                scale_rewards="none",
                optim="sgd",
                max_grad_norm=0.0,
                learning_rate=1e-6,
                shuffle_dataset=False,
                gradient_checkpointing=False,
                bf16=is_half,
                use_cpu=device == "cpu",
                model_init_kwargs={"dtype": "float32"},
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=0,
            )
            keep = Keep()
            trainer_class(
                model=model,
                reward_funcs=forced.earned_reward,
                args=args,
                train_dataset=datasets.Dataset.from_list([{"prompt": str(n)} for n in range(forced.NUM_PROMPTS)]),
                processing_class=forced.new_tokenizer(vocabulary),
                rollout_func=forced.rollout_func([window]),
                callbacks=[keep],
            ).train()
        return keep.kept

    found = {
        "stock": of(GRPOTrainer, is_half=True),
        "ours": of(TinyZeroTrainer, is_half=True),
        "stock in float32": of(GRPOTrainer, is_half=False),
    }
    names = found["stock"].keys()
    if found["ours"].keys() != names:
        raise RuntimeError(f"gradients of other parameters: {sorted(found['ours'].keys() ^ names)[:5]}")

    def distance(one: str, other: str, among: Sequence[str] = tuple(names)) -> float:
        squares = sum(float((found[one][name] - found[other][name]).double().square().sum()) for name in among)
        return float((squares / sum(float(found[other][name].double().square().sum()) for name in among)) ** 0.5)

    worst = max(names, key=lambda name: distance("ours", "stock", [name]))
    return {
        "ours to stock": distance("ours", "stock"),
        "worst tensor": distance("ours", "stock", [worst]),
        "ours to float32": distance("ours", "stock in float32"),
        "stock to float32": distance("stock", "stock in float32"),
        "norm": sum(float(value.double().square().sum()) for value in found["stock"].values()) ** 0.5,
    }


def step(words: list[str], is_ours: bool) -> dict[str, float]:
    """Average seconds of a step after the first, by phase (step_vs_trl.py), with generated tokens."""
    import step_vs_trl
    import torch

    return step_vs_trl.means(step_vs_trl.measure(words, is_ours, torch.get_num_threads(), None))


def memory(words: list[str], device: str) -> dict[str, Any]:
    """GiB that a run of ours takes at its peak, and what `tinyzero estimate` says of the same words, by phase."""
    import step_vs_trl
    import torch
    from watch import Watch

    from tinyzero_trl import cli

    if device == "cuda":
        # As the launcher starts the process: accelerate then wraps even a single one in DDP, whose buckets take memory.
        os.environ |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29511",
        }
    with tempfile.TemporaryDirectory() as folder:
        trainer = step_vs_trl.build(words, folder=Path(folder), is_ours=True)
        watch = Watch(trainer)
        trainer.train()
    phases: dict[str, int] = {}
    for one in watch.steps:
        phases |= {name: max(value, phases.get(name, 0)) for name, value in one.peaks.items()}
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()  # of this process, and of whoever else uses the card
        peak = context + max(one.reserved for one in watch.steps)
    else:
        context, peak = 0, max(one.peak for one in watch.steps)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        cli.main(["estimate", "--json", "--prompt_tokens", str(PROMPT_TOKENS), *words])
    estimate = json.loads(printed.getvalue())
    return {
        "measured": peak / GIB,
        "context": context / GIB,
        "measured phases": {name: value / GIB for name, value in phases.items()},
        "estimated": estimate["peak_bytes"] / GIB,
        "estimated phase": estimate["peak_phase"],
        "estimated phases": {
            name: (sum(held.values()) - held.get("CUDA", 0.0)) / GIB for name, held in estimate["phases"].items()
        },
    }


def train(words: list[str]) -> None:
    """One run of grpo.py, in this process."""
    from tinyzero_trl import grpo

    if code := grpo.train(words):
        raise RuntimeError(f"grpo.py ended with {code}")


def difference(one: str, other: str) -> dict[str, float]:
    """The distance between the weights of two models: the largest difference, and the share of weights that differ."""
    from safetensors.torch import load_file

    first, second = (load_file(Path(folder) / "model.safetensors") for folder in (one, other))
    if first.keys() != second.keys():
        raise RuntimeError(f"other tensors: {sorted(first.keys() ^ second.keys())[:5]}")
    gaps = {name: (first[name].double() - second[name].double()).abs() for name in first}
    num_weights = sum(gap.numel() for gap in gaps.values())
    return {
        "largest": max(float(gap.max()) for gap in gaps.values()),
        "share": sum(int(gap.ne(0).sum()) for gap in gaps.values()) / num_weights,
    }


def about(device: str) -> dict[str, str]:
    """Card and versions, for the head of the table."""
    import importlib.metadata
    import platform

    import torch

    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "triton", "vllm"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    # Triton, which TRL's loss is computed with on a GPU, compiles a few lines of C.
    found["C compiler"] = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), "none")
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["card"] = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        found["card"] = f"CPU ({os.cpu_count()} cores): a dry run"
    return found


# Parts: each makes rows out of measurements.


def part_gradients(proof: Proof) -> list[Row]:
    found = proof.apart(gradients, model=str(proof.folder / "0.5B"), device=proof.device, is_small=proof.is_small)
    near = found["ours to float32"] / found["stock to float32"]
    name = "gradients, 0.5B, bf16"
    return [
        Row(name, "ours to stock TRL, relative", f"{found['ours to stock']:.2e}", f"at most {GRADIENT_BOUND:g}",
            found["norm"] > 0 and found["ours to stock"] <= GRADIENT_BOUND),
        Row(name, "the same, worst tensor", f"{found['worst tensor']:.2e}"),
        Row(name, "to stock in float32: ours / stock", f"{found['ours to float32']:.2e} / {found['stock to float32']:.2e}",
            f"a ratio of {NEARNESS_BOUND:g} at most", near <= NEARNESS_BOUND),
    ]  # fmt: skip


def part_memory(proof: Proof) -> list[Row]:
    rows = []
    for model in ("0.5B", "1.5B"):
        for kind, own in (("all weights", ()), ("LoRA", LORA)):
            words = proof.words(model, *memory_words(proof), *own)
            found = proof.apart(memory, words=words, device=proof.device)
            ratio = found["estimated"] / found["measured"]
            phases = ", ".join(
                f"{phase} {found['estimated phases'].get(phase, 0.0):.2f} / {value:.2f}"
                for phase, value in found["measured phases"].items()
            )
            # Shapes this small are below what libraries take on a CPU: nothing is wanted of them.
            is_meant = proof.device == "cuda" and not proof.is_small
            rows.append(
                Row(f"memory, {model}, {kind}", "peak, estimated / measured GiB (CUDA's own included)",
                    f"{found['estimated']:.2f} / {found['measured']:.2f} = {ratio:.2f}",
                    f"within {MEMORY_TOLERANCE:.0%}" if is_meant else "",
                    abs(ratio - 1) <= MEMORY_TOLERANCE if is_meant else None)
            )  # fmt: skip
            if phases:
                rows.append(Row(f"memory, {model}, {kind}", "by phase, estimated / allocated GiB", phases))
    return rows


def memory_words(proof: Proof) -> list[str]:
    """A step whose rows all grow long, so that the longest row estimated is there."""
    sizes = (4, 2, 8) if proof.is_small else (8, 2, 256)
    return [
        *batch(*sizes),
        "trainer.num_generations=4",
        "trainer.max_steps=2",
        *PAID,
        "batching.skip_constant_groups=false",
    ]


PAID = ("rewards.parity.py:parity=1.0",)


def batch(rows: int, micro_steps: int, completion: int) -> list[str]:
    return [
        f"trainer.per_device_train_batch_size={rows}",
        f"trainer.gradient_accumulation_steps={micro_steps}",
        f"trainer.max_completion_length={completion}",
    ]


def part_speed(proof: Proof) -> list[Row]:
    sizes = (4, 2, 8) if proof.is_small else (8, 8, 384)
    words = proof.words("0.5B", *batch(*sizes), "trainer.num_generations=8", "trainer.max_steps=3", *PAID)
    stock, ours = (proof.apart(step, words=words, is_ours=is_ours) for is_ours in (False, True))
    name = "a step, 0.5B, bf16"
    rows = [
        Row(name, f"seconds in {phase}, stock / ours", f"{stock[phase]:.3f} / {ours[phase]:.3f}")
        for phase in ("generation", "scoring", "training")
    ]
    # Both draw tokens of their own, so a step is not the same work; seconds for a token are.
    rate = {
        who: (found["generated"] / found["generation"], found["per_1000"])
        for who, found in (("stock", stock), ("ours", ours))
    }
    rows.append(Row(name, "generated tokens/s, stock / ours", f"{rate['stock'][0]:,.0f} / {rate['ours'][0]:,.0f}"))
    is_meant = not proof.is_small
    rows.append(
        Row(name, "seconds for 1,000 generated tokens, trained on, stock / ours",
            f"{rate['stock'][1]:.3f} / {rate['ours'][1]:.3f} = {rate['stock'][1] / rate['ours'][1]:.2f}",
            "at least 1" if is_meant else "", rate["stock"][1] >= rate["ours"][1] if is_meant else None)
    )  # fmt: skip
    return rows


def part_demo(proof: Proof) -> list[Row]:
    small = [*batch(16, 2, 48), "trainer.num_generations=8", "trainer.save_steps=1"]
    counts = ["--steps", "2", "--problems", "32"] if proof.is_small else []
    began = time.monotonic()
    run = proof.folder / "demo"
    use_cpu = f"trainer.use_cpu={str(proof.device == 'cpu').lower()}"
    said = proof.tinyzero("demo", "--output_dir", str(run), *counts, use_cpu, *(small if proof.is_small else []))
    accuracy = [
        json.loads((run / "evaluation" / name / "summary.json").read_text(encoding="utf-8"))["metrics"]["pass@1"][
            "value"
        ]
        for name in ("base", "final")
    ]
    gain = accuracy[1] - accuracy[0]
    seconds = next((line for line in said.splitlines() if " s in all: " in line), "")
    is_meant = not proof.is_small
    return [
        Row("demo", "accuracy, base to trained", f"{accuracy[0]:.1%} to {accuracy[1]:.1%}",
            f"a gain of {LEAST_GAIN:.0%} points at least" if is_meant else "", gain >= LEAST_GAIN if is_meant else None),
        Row("demo", "seconds", f"{time.monotonic() - began:.0f} ({seconds.strip()})"),
    ]  # fmt: skip


def part_resume(proof: Proof) -> list[Row]:
    """Six steps, the same again, and the same from the checkpoint of the third."""
    use_cpu = f"trainer.use_cpu={str(proof.device == 'cpu').lower()}"
    words = [
        *(
            "+countdown=grpo-tiny",
            use_cpu,
            *NO_PAUSES,
            "trainer.save_strategy=steps",
            "trainer.save_steps=3",
            "trainer.max_steps=6",
        ),
        *batch(*((8, 2, 24) if proof.is_small else (64, 2, 128))),
    ]
    for name in ("straight", "again"):
        proof.apart(train, words=[*words, f"output_dir={proof.folder / name}"])
    resumed = proof.folder / "resumed"
    shutil.copytree(proof.folder / "straight", resumed, ignore=shutil.ignore_patterns("model", "checkpoint-6"))
    proof.apart(train, words=[*words, f"trainer.resume_from_checkpoint={resumed}"])
    models = [str(proof.folder / name / "model") for name in ("straight", "again", "resumed")]
    again = proof.apart(difference, one=models[0], other=models[1])
    found = proof.apart(difference, one=models[0], other=models[2])
    moved = proof.apart(difference, one=models[0], other=str(proof.folder / "straight" / "checkpoint-3"))
    shown = "largest difference of a weight (share of weights)"
    # Some kernels add in any order, so that the run itself may not be repeatable: resuming can be as exact as that, and no more.
    bound = 2 * again["largest"]
    return [
        Row("resume", f"straight and the same again, {shown}", f"{again['largest']:.1e} ({again['share']:.1%})"),
        Row("resume", f"straight and resumed, {shown}", f"{found['largest']:.1e} ({found['share']:.1%})",
            "0" if not bound else f"at most {bound:.1e}", moved["largest"] > 0 and found["largest"] <= bound),
        Row("resume", "what the three steps after the checkpoint change", f"{moved['largest']:.1e} ({moved['share']:.1%})"),
    ]  # fmt: skip


def part_engines(proof: Proof) -> list[Row]:
    name = "engines, 0.5B"
    if subprocess.run([sys.executable, "-c", "import importlib.util, sys; sys.exit(not importlib.util.find_spec('vllm'))"],
                      env=environment()).returncode:  # fmt: skip
        return [Row(name, "colocate and server", "not installed: vLLM is not in this environment")]
    rows = []
    sizes = (4, 2, 8) if proof.is_small else (8, 8, 384)
    for engine in ("transformers", "colocate", "server"):
        run = proof.folder / engine
        own = [f"generation.engine={engine}", f"output_dir={run}", "trainer.max_steps=3", "trainer.num_generations=8"]
        if engine != "transformers":
            own += [
                "trainer.vllm_max_model_length=1024",
                "generation.memory_share=0.3",
                "trainer.vllm_gpu_memory_utilization=0.3",
            ]
        try:
            proof.tinyzero("train", *proof.words("0.5B", *batch(*sizes), *PAID, *own), "--processes", "1")
            steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            last = [entry for entry in steps if "reward" in entry][-1]
            gap = last.get("sampling/sampling_logp_difference/mean")
            sync = f", weights in {last['seconds/sync']:.2f} s" if "seconds/sync" in last else ""
            rows.append(
                Row(name, f"{engine}: tokens/s; log-probabilities to the trainer's",
                    f"{last['tokens_per_second']:,.0f}{sync}; {gap:.4f} nats" if gap is not None else "no log-probabilities",
                    f"at most {SAMPLER_GAP:g} nats", gap is not None and gap <= SAMPLER_GAP)
            )  # fmt: skip
        except RuntimeError as error:
            rows.append(Row(name, engine, f"failed: {error}", holds=False))
    return rows


@dataclass(frozen=True)
class Part:
    """A part of the proof."""

    make_rows: Callable[[Proof], list[Row]]
    minutes: float
    """Its share of the twelve."""


PARTS: Mapping[str, Part] = {
    "gradients": Part(part_gradients, 2.0),
    "memory": Part(part_memory, 3.5),
    "speed": Part(part_speed, 2.5),
    "demo": Part(part_demo, 5.5),
    "resume": Part(part_resume, 1.5),
    "engines": Part(part_engines, 4.0),
}
"""In the order of what is most worth knowing; each may use what those before it left, up to its share."""


def prove(proof: Proof, chosen: Mapping[str, Part], *, minutes: float, write: Callable[[list[Row]], None]) -> list[Row]:
    """The rows of all parts; `write` gets those there are after each one."""
    end = time.monotonic() + 60 * minutes
    rows: list[Row] = []
    for name, part in chosen.items():
        began = time.monotonic()
        proof.deadline = min(end, began + 60 * part.minutes * max(1.0, minutes / MINUTES))
        if end - began < 10:
            rows.append(Row(name, "not begun", "no minutes were left", holds=False))
        else:
            try:
                rows += part.make_rows(proof)
            except (RuntimeError, OSError, ValueError, KeyError, IndexError) as error:
                rows.append(Row(name, "failed", f"{error}".splitlines()[0] if str(error) else repr(error), holds=False))
            rows.append(Row(name, "took", f"{time.monotonic() - began:.0f} s"))
        write(rows)
    return rows


def markdown(rows: Sequence[Row], facts: Mapping[str, str], *, command: str, seconds: float) -> str:
    """The table, below what it was measured on."""
    versions = ", ".join(f"{name} {value}" for name, value in facts.items() if name != "card")
    lines = [
        "# What a GPU shows",
        "",
        f"{facts.get('card', 'unknown')}; {datetime.now(UTC):%Y-%m-%d}; {versions}. `{command}`, {seconds:.0f} s in all.",
        "",
        *("| part | what | value | wanted | holds |", "| --- | --- | --- | --- | --- |"),
    ]
    shown = {True: "yes", False: "**no**", None: ""}
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in (r.part, r.what, r.value, r.wanted, shown[r.holds])) + " |"
        for r in rows
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    """Exit code 0 where everything holds, 1 where something does not, 2 where there is no GPU."""
    arguments = _parser().parse_args()
    if arguments.do:
        sys.path[:0] = [str(HERE), str(REPO / "src")]
        functions = (make_models, gradients, step, memory, train, difference, about)
        result = {function.__name__: function for function in functions}[arguments.do](
            **json.loads(arguments.arguments)
        )
        arguments.result.write_text(json.dumps(result), encoding="utf-8")
        return 0
    unknown = sorted(set(arguments.parts) - PARTS.keys())
    if unknown:
        print(f"gpu_proof.py: there is no part {unknown[0]!r}; there is {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if arguments.device == "cuda" and (why := why_no_gpu()):
        print(f"gpu_proof.py: {why}; a dry run: --device cpu --small", file=sys.stderr)
        return 2
    began = time.monotonic()
    command = " ".join(["python", "docs/benchmarks/gpu_proof.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="gpu-proof-", dir=arguments.folder) as name:
        proof = Proof(arguments.device, arguments.small, Path(name), deadline=began + 60 * arguments.minutes)
        facts: dict[str, str] = proof.apart(about, device=arguments.device)

        def write(rows: list[Row]) -> None:
            page = markdown(rows, facts, command=command, seconds=time.monotonic() - began)
            for path, text in (
                (arguments.out, page),
                (arguments.json, json.dumps([asdict(row) for row in rows], indent=1)),
            ):
                if path is not None:
                    part = path.with_name(f"{path.name}.{os.getpid()}.part")
                    part.write_text(text, encoding="utf-8")
                    os.replace(part, path)
            print("\n".join(f"{row.part}: {row.what}: {row.value}" for row in rows[write.said :]), flush=True)  # type: ignore[attr-defined]
            write.said = len(rows)  # type: ignore[attr-defined]

        write.said = 0  # type: ignore[attr-defined]
        proof.apart(make_models, folder=str(proof.folder), is_small=arguments.small, device=arguments.device)
        left = arguments.minutes - (time.monotonic() - began) / 60
        rows = prove(proof, {part: PARTS[part] for part in arguments.parts}, minutes=left, write=write)
    return int(any(row.holds is False for row in rows))


def why_no_gpu() -> str | None:
    """Why nothing can be measured here; None where the driver lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return "there is no NVIDIA GPU here (no nvidia-smi)"
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    if listed.returncode or "GPU " not in listed.stdout:
        said = (listed.stdout + listed.stderr).strip().splitlines()
        return f"there is no NVIDIA GPU here (nvidia-smi: {said[0] if said else 'nothing'})"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="after which nothing more is begun (default: %(default)g)"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="(default: cuda)")
    parser.add_argument("--small", action="store_true", help="tiny shapes and counts: does it run")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu_proof.md"), metavar="FILE", help="the table (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="its rows")
    parser.add_argument("--folder", type=Path, help="for models and runs, 10 GB (default: where temporary files go)")
    parser.add_argument("--do", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
