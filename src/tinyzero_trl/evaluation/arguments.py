"""The command line of evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinyzero_trl.config import ENGINES
from tinyzero_trl.evaluation import benchmarks
from tinyzero_trl.evaluation.plan import DEFAULT_NUM_PROBLEMS
from tinyzero_trl.storage import trust
from tinyzero_trl.tasks import TASKS


def parser_of(task: str | None) -> argparse.ArgumentParser:
    """The command line of `tinyzero evaluate`, or of the script of one task."""
    parser = argparse.ArgumentParser(
        prog="tinyzero evaluate" if task is None else f"evaluate_{task}.py",
        description="Answer held-out problems with a model; or compare two evaluations of the same problems, or audit one.",
        epilog="Format, source, temperature and length are read from the run.yaml of the run that --model_path, or else "
        f"--output, names. Example: --model_path outputs/{task or 'countdown'}/RUN --n 512",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model_path", metavar="P", help="run folder, checkpoint, model folder, LoRA adapter, `tiny` or hub id")
    if task is None:
        add("--task", help="needed where the model comes from no run: " + ", ".join(TASKS))
    add("--source", metavar="S", help="hub id, file or folder of rows, prepared folder, or `generated`")
    add("--split", choices=("test", "validation"), default="test")
    add(
        "--benchmarks",
        metavar="B,...",
        help=f"one or more of {', '.join(benchmarks.BENCHMARKS)}, or NAME=FILE (.jsonl, .json, .csv, .tsv, .parquet, or a folder with "
        "such files), with commas between",
    )
    add(
        "--columns",
        nargs="+",
        default=[],
        metavar="[B.]problem=C",
        help="columns of a benchmark: problem, answer, level",
    )
    add(
        "--contamination",
        action="store_true",
        help="instead: the share of problems known by heart, from 60 %% of their text",
    )
    add("--n", type=int, help=f"problems (default: {DEFAULT_NUM_PROBLEMS}; all of a benchmark)")
    add(
        "--k",
        type=int,
        help="samples of each problem; more than 1 adds pass@k and maj@k (default: 1, or the benchmark's)",
    )
    add("--temperature", type=float, metavar="T", help="0 is greedy (default: the run's, or 1; the benchmark's)")
    add("--top_p", type=float, metavar="P", help="sample from the likeliest tokens (default: 1, or the benchmark's)")
    add(
        "--stop",
        nargs="*",
        metavar="S",
        help="strings that end a response (default: the run's; without a string: none)",
    )
    add("--max_new_tokens", type=int, help="tokens of a response (default: the run's, or 1024)")
    add("--seed", type=int, default=0, help="draws problems and samples (default: 0)")
    add("--batch_size", type=int, help="sequences generated at once")
    add(
        "--engine",
        choices=ENGINES,
        help="who generates: the model in transformers, or vLLM as a server of its own or in this process (default: colocate where "
        "there is a GPU and vLLM, else transformers)",
    )
    add("--format", help="wording of the prompt (default: the run's, or base)")
    add(
        "--output",
        type=Path,
        metavar="D",
        help="folder that gets evaluation/<name>/ (default: the run folder); a run folder also lends its settings",
    )
    add("--name", help="name of the evaluation (default: base, final or checkpoint-N)")
    add("--overwrite", action="store_true", help="replace an evaluation of this name made with other settings")
    add(
        trust.OPTION,
        action="store_true",
        help="run the code that the run.yaml of somebody else's run names, once you have read it",
    )
    add("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two evaluation folders: the paired gain of B over A")
    add(
        "--audit",
        type=Path,
        nargs="+",
        metavar="D",
        help="evaluation folders: grade their samples again, by a grader that is not ours",
    )
    return parser
