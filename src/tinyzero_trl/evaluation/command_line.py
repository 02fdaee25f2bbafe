"""The command line of evaluation: `tinyzero evaluate` and the scripts `evaluate_<task>.py`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tinyzero_trl.config import ENGINES, engine_of_evaluation
from tinyzero_trl.evaluation import audit, benchmarks, contamination, scores
from tinyzero_trl.evaluation.evaluating import evaluate_all
from tinyzero_trl.evaluation.plan import DEFAULT_NUM_PROBLEMS, Settings, make_plan
from tinyzero_trl.evaluation.tables import show, show_comparison
from tinyzero_trl.failures import OUT_OF_MEMORY_EXIT, ConfigError, DiskFull, Failure, VerifierFailure, explained
from tinyzero_trl.redaction import secrets_in_environment, without_secrets
from tinyzero_trl.storage import trust
from tinyzero_trl.tasks import TASKS
from tinyzero_trl.threads import bound_waiting


def main(argv: Sequence[str] | None = None, task: str | None = None) -> int:
    """Do what the command line asks; returns the exit code, which means the same as that of training (`failures`)."""
    arguments = parser_of(task).parse_args(argv)
    bound_waiting()
    try:
        if arguments.compare:
            show_comparison(*arguments.compare)
        elif arguments.audit:
            audit.show(arguments.audit)
        elif arguments.model_path is None:
            raise ValueError("give --model_path, or two evaluations to --compare, or one to --audit")
        elif arguments.contamination:
            contamination.show(_probe(_settings(arguments, task)))
        else:
            folders = evaluate_all(_settings(arguments, task))
            show(folders)
            _refuse_undecided(folders)
    except (ValueError, FileNotFoundError) as error:
        return _failed(str(error), ConfigError.exit_code)
    except OSError as error:
        if failure_of_disk := explained(error):
            return _failed(str(failure_of_disk), failure_of_disk.exit_code)
        return _failed(
            f"nothing was written to {error.filename or 'disk'}: {error.strerror or error}", DiskFull.exit_code
        )
    except Failure as failure:
        return _failed(str(failure), failure.exit_code)
    except MemoryError:
        return _failed("out of memory: lower --batch_size or --max_new_tokens", OUT_OF_MEMORY_EXIT)
    except KeyboardInterrupt:
        message = "stopped; what was answered is kept, and the same command goes on from there"
        return _failed(message, 128 + signal.SIGINT)
    return 0


def _settings(arguments: argparse.Namespace, task: str | None) -> list[Settings]:
    """The settings of each benchmark, or those of the task's own problems alone.

    Raises: ValueError or FileNotFoundError.
    """
    others = ("compare", "audit", "benchmarks", "columns", "contamination")
    settings = Settings(**{"task": task, **{name: v for name, v in vars(arguments).items() if name not in others}})
    if arguments.benchmarks is None:
        return [settings]
    for option, value in (("--source", settings.source), ("--split_rule", settings.split_rule)):
        if value is not None:
            raise ValueError(f"{option} is of the task's own problems; a benchmark's file is --benchmarks NAME=FILE")
    return [replace(settings, benchmark=one) for one in benchmarks.chosen(arguments.benchmarks, arguments.columns)]


def _probe(asked: Sequence[Settings]) -> Path:
    """The contamination.json of the benchmarks in `asked`. Raises: ValueError or FileNotFoundError."""
    first, chosen = asked[0], [settings.benchmark for settings in asked if settings.benchmark]
    if not chosen:
        raise ValueError("--contamination is about the texts of --benchmarks; name one")
    engine = engine_of_evaluation(first.engine)
    folder = make_plan(replace(first, overwrite=True)).folder.parent
    return contamination.probe(first.model_path, chosen, n=first.n, seed=first.seed, engine=engine, output=folder)


def _refuse_undecided(folders: Sequence[Path]) -> None:
    """Refuse evaluations of which more than `scores.MAX_UNDECIDED` of the samples got no verdict.

    Raises: VerifierFailure.
    """
    shares = {folder: scores.undecided(scores.read_summary(folder)) for folder in folders}
    if failed := [f"{share:.1%} in {folder}" for folder, share in shares.items() if share > scores.MAX_UNDECIDED]:
        raise VerifierFailure(
            f"the verifier gave up on {', '.join(failed)} (bar: {scores.MAX_UNDECIDED:.1%}), so the figures are no measure of the "
            "model; see outcome `undecided` in samples.parquet, and once the cause is gone run it again with --overwrite"
        )


def _failed(message: str, code: int) -> int:
    print(f"evaluate: {without_secrets(message, secrets_in_environment())}", file=sys.stderr)
    return code


def parser_of(task: str | None) -> argparse.ArgumentParser:
    """The parser of `tinyzero evaluate`, or of the script of one task."""
    parser = argparse.ArgumentParser(
        prog="tinyzero evaluate" if task is None else f"evaluate_{task}.py",
        description="Answer held-out problems with a model; or compare two evaluations of the same problems, or audit one.",
        epilog="Format, source, temperature and length are read from the run.yaml of the run that --model_path, or else "
        f"--output, names. Example: --model_path outputs/{task or 'countdown'}/RUN --n 512",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--model_path",
        metavar="P",
        help="run folder, checkpoint, model folder, LoRA adapter, `tiny`, `tiny-search` or hub id",
    )
    if task is None:
        add("--task", help="needed where the model comes from no run: " + ", ".join(TASKS))
    add("--source", metavar="S", help="hub id, file or folder of rows, prepared folder, or `generated`")
    add("--split", choices=("test", "validation"), default="test")
    add(
        "--split_rule",
        choices=("problem", "tinyzero"),
        help="by a hash of the problem, or by place in TinyZero's file (default: the run's, or problem)",
    )
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
