"""Run folders that were cut, edited or mixed up: each reader names the file and what to do, and shows no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from omegaconf import DictConfig

from run_folders import write_run
from tinyzero_trl import cli
from tinyzero_trl.config import compose
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.models.location import locate
from tinyzero_trl.report import write_report
from tinyzero_trl.report.run_files import read_run
from tinyzero_trl.runs import folder as run_folder
from tinyzero_trl.runs import record
from tinyzero_trl.storage import manifest

Damage = Callable[[Path], None]
SUMMARY = "evaluation/final/summary.json"
SAMPLES = "evaluation/final/samples.parquet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with a record of a real recipe, evaluations, and sealed checkpoints 3 and 6."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "run", num_steps=6, num_problems=12, eval_every=3, num_eval=4)
    record.write_record(folder, compose(["+countdown=grpo-tiny"]), data={}, seeds={})
    for step in (3, 6):
        sealed(folder / f"checkpoint-{step}", step=step)
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """The same run, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture(scope="module")
def resumed() -> Callable[[Path], run_folder.RunFolder]:
    """Chooses where the run in a folder goes on, as training does."""
    cfg: DictConfig = compose(["+countdown=grpo-tiny", "trainer.max_steps=9999"])

    def choose(run: Path) -> run_folder.RunFolder:
        cfg.trainer.resume_from_checkpoint = str(run)
        return run_folder.choose(cfg)

    return choose


def sealed(folder: Path, *, step: int) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    manifest.seal(folder, step=step, world_size=1)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a verb that failed has printed."""
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def changed_json(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def changed_record(run: Path, key: str, value: Any) -> None:
    file = run / "run.yaml"
    content = yaml.safe_load(file.read_text())
    section, _, name = key.rpartition(".")
    (content[section] if section else content)[name] = value
    file.write_text(yaml.safe_dump(content))


def rewritten(file: Path, column: str, values: Any) -> None:
    """A column of a parquet file with the same value in each row; None for the value takes the column away."""
    table = pq.read_table(file)
    index = table.schema.get_field_index(column)
    without = table.remove_column(index)
    pq.write_table(without if values is None else without.append_column(column, [[values] * len(table)]), file)


# ---- manifests


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"files": None}, "MANIFEST.json has no files"),
        ({"files": ["config.json"]}, "MANIFEST.json has no files"),
        ({"files": "config.json"}, "MANIFEST.json has no files"),
        ({"files": {}}, "MANIFEST.json names no files"),
        ({"files": {"config.json": None}}, "MANIFEST.json does not say size and sha256 of config.json"),
        ({"files": {"config.json": {"size": "2", "sha256": "x"}}}, "does not say size and sha256 of config.json"),
        ({"files": {"../run.yaml": {"size": 2, "sha256": "x"}}}, "names '../run.yaml', which is not in the folder"),
        ({"files": {"/etc/passwd": {"size": 2, "sha256": "x"}}}, "names '/etc/passwd', which is not in the folder"),
        ({"step": "six"}, "has a step or world_size that is no number"),
        ({"world_size": None}, "has a step or world_size that is no number"),
        (b"", "MANIFEST.json is not JSON"),
        (b"\xff\xfe", "MANIFEST.json is not JSON"),
        (b'{"schema": 1, "files": {"con', "MANIFEST.json is not JSON"),
        (b"[" * 100_000, "MANIFEST.json is not JSON"),
        (b"[1, 2]", "MANIFEST.json holds no object"),
        (b"null", "MANIFEST.json holds no object"),
    ],
)
def test_a_checkpoint_with_a_broken_manifest_is_passed_over_for_an_older_one(
    run: Path, resumed: Callable[[Path], run_folder.RunFolder], change: Any, reason: str
) -> None:
    file = run / "checkpoint-6" / manifest.MANIFEST
    if isinstance(change, bytes):
        file.write_bytes(change)
    else:
        changed_json(file, **change)
    folder = resumed(run)
    assert folder.resume_from == run / "checkpoint-3"
    assert folder.warnings[0].startswith("passed over checkpoint-6 has a damaged manifest (")
    assert reason in folder.warnings[0]
    assert locate(str(run)).path == str(run / "checkpoint-3")
    with pytest.raises(ConfigError, match="checkpoint-6 has a damaged manifest"):
        resumed(run / "checkpoint-6")


def test_folders_that_are_no_checkpoints_are_none(run: Path, resumed: Callable[[Path], run_folder.RunFolder]) -> None:
    for name in ("checkpoint-", "checkpoint-x", "checkpoint--3", "checkpoint-७", "checkpoint-9.5"):
        (run / name).mkdir()
    (run / "checkpoint-99999999999999999999").mkdir()
    folder = resumed(run)
    assert folder.resume_from == run / "checkpoint-6"
    assert folder.warnings == ("passed over checkpoint-99999999999999999999 was not finished (it has no manifest)",)


# ---- run.yaml


BROKEN_RECORDS: list[tuple[Any, str]] = [
    (b"", "it holds nothing"),
    (b"\x00\xff\xfe", "is not YAML"),
    ("task: countdown".encode("utf-16"), "is not YAML"),
    (b"- a\n- b\n", "it holds a list"),
    (b"hello", "it holds a str"),
    (b"3", "it holds an int"),
    (b"trainer: {a: [", "is not YAML"),
    (b"task: a\n\t- b\n", "is not YAML"),
    (b"a: !!python/object/apply:os.system ['true']\n", "is not YAML"),
    (b"[" * 500, "is not YAML"),
    (b"a: &a [x, x]\nb: [*a, *a]\n", "it has YAML aliases"),
    (("trainer", [1]), "trainer must be a section, not a list"),
    (("trainer", "x"), "trainer must be a section, not a str"),
    (("data", 3), "data must be a section, not an int"),
    (("model", True), "model must be a section, not a bool"),
    (("provenance", "x"), "provenance must be a section, not a str"),
    (("generation", ["x"]), "generation must be a section, not a list"),
    (("batching", 3), "batching must be a section, not an int"),
    (("provenance.hardware", "a laptop"), "provenance.hardware must be a section, not a str"),
    (("provenance.packages", ["torch"]), "provenance.packages must be a section, not a list"),
    (("provenance.model", 3), "provenance.model must be a section, not an int"),
    (("provenance.data", [1, 2]), "provenance.data must be a section, not a list"),
    (("provenance.earlier", 3), "provenance.earlier must be a list"),
    (("trainer.max_steps", "many"), "trainer.max_steps is 'many' and no number"),
    (("trainer.num_train_epochs", float("nan")), "trainer.num_train_epochs is nan and no number"),
    (("max_generated_tokens", [1]), "max_generated_tokens is [1] and no number"),
    (("trainer.temperature", "hot"), "trainer.temperature is 'hot' and no number"),
    (("trainer.max_completion_length", 1.5), "trainer.max_completion_length is 1.5 and no number"),
]


def broken(run: Path, change: Any) -> None:
    if isinstance(change, bytes):
        (run / "run.yaml").write_bytes(change)
    else:
        changed_record(run, *change)


@pytest.mark.parametrize(("change", "reason"), BROKEN_RECORDS)
def test_a_broken_run_yaml_is_named_where_a_run_is_continued_or_evaluated_and_left_out_of_its_report(
    run: Path, resumed: Callable[[Path], run_folder.RunFolder], change: Any, reason: str
) -> None:
    broken(run, change)
    said = []
    for reads in (resumed, lambda run: locate(str(run))):
        with pytest.raises(ValueError, match="is not") as error:
            reads(run)
        said.append(str(error.value))
    said.append(read_run(run).missing[0])
    for line in said:
        assert f"{run / 'run.yaml'} is not" in line
        assert reason in line
        assert "put back the file that the run wrote, or use another run" in line
        assert "\n" not in line


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("generation.stop", 3, "generation.stop is 3 and no list of texts"),
        ("generation.stop", "</answer>", "generation.stop is '</answer>' and no list of texts"),
        ("generation.stop", [1], "generation.stop is [1] and no list of texts"),
        ("task", 3, "task is 3 and no name"),
        ("format", ["base"], "format is ['base'] and no name"),
    ],
)
def test_a_value_of_run_yaml_that_an_evaluation_reads_is_named(run: Path, key: str, value: Any, reason: str) -> None:
    changed_record(run, key, value)
    with pytest.raises(ValueError, match="run.yaml is not the record of a run") as error:
        locate(str(run))
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("provenance.packages", None),
        ("provenance.git_commit", 12),
        ("provenance.command", {"a": 1}),
        ("provenance", None),
        ("task", {"a": 1}),
        ("model.model_name_or_path", [1]),
        ("model", None),
    ],
)
def test_a_report_is_written_whatever_the_parts_of_run_yaml_are(run: Path, key: str, value: Any) -> None:
    changed_record(run, key, value)
    assert "pass" in write_report(run).read_text(encoding="utf-8")


def test_a_run_without_its_provenance_goes_on(run: Path, resumed: Callable[[Path], run_folder.RunFolder]) -> None:
    for key in ("provenance.data", "provenance.model", "provenance.packages", "provenance.earlier", "provenance"):
        changed_record(run, key, None)
        assert resumed(run).resume_from == run / "checkpoint-6"
        record.write_record(run, compose(["+countdown=grpo-tiny"]), data={}, seeds={})


def test_a_key_that_stands_twice_in_run_yaml_is_told(
    run: Path, resumed: Callable[[Path], run_folder.RunFolder]
) -> None:
    with (run / "run.yaml").open("a") as file:
        file.write("task: math\n")
    with pytest.raises(ConfigError, match="run.yaml: .*duplicate key task"):
        resumed(run)


# ---- metrics


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"\xff\xfe\x00\x01\n\x80",
        b'{"step": 1, "reward": 0.5, "x": "\xff"}\n',
        b"[1]\n2\nnull\n",
        b'{"step": "one", "reward": 0.5}\n{"step": null, "reward": 0.5}\n{"step": true, "reward": 0.5}\n',
        b'{"step": NaN, "reward": 0.5}\n{"step": 1.5, "reward": 0.5}\n{"step": -4, "reward": 0.5}\n',
        b'{"step": 1' + b"0" * 400 + b', "reward": 0.5}\n',
        b"[" * 200_000,
    ],
)
def test_lines_of_metrics_that_are_none_are_left_out_of_report_and_run(run: Path, lines: bytes) -> None:
    (run / "metrics.jsonl").write_bytes(lines)
    files = read_run(run)
    assert files.train == []
    assert "metrics.jsonl has no training step, so there are no curves." in files.missing
    record.cut_metrics(run, step=6)
    assert all(json.loads(line)["step"] <= 6 for line in (run / "metrics.jsonl").read_text().splitlines())


def test_values_of_metrics_that_are_no_numbers_are_left_out_and_the_others_shown(run: Path) -> None:
    odd = {
        "reward": "high",
        "accuracy": [1],
        "seconds": True,
        "num_tokens": None,
        "entropy": {"a": 1},
        "speed": "9" * 400,
    }
    lines = [json.dumps({"step": step, **odd}) for step in (1, 2)]
    lines += ['{"step": 3, "reward": NaN, "seconds": Infinity, "num_tokens": 1e999, "tokens_per_second": -1e400}']
    lines += [
        '{"step": 4, "reward": ' + "9" * 400 + ', "seconds": 3}',
        '{"step": 5, "reward": 0.5, "seconds": 4, "eval',
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert read_run(run).train == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "seconds": 3}]
    assert "NaN" not in write_report(run).read_text(encoding="utf-8").split('id="charts">')[1].split("</script>")[0]
    assert record.cut_metrics(run, step=4) == 3.0


# ---- evaluations


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (b"", "is not JSON"),
        (b"\xff\x00", "is not JSON"),
        (b'{"schema": 1, "met', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"null", "is not the summary of an evaluation: it holds nothing"),
        (b"[]", "it holds a list"),
        (b'"x"', "it holds a str"),
        (b"{}", "it has no metrics"),
        (b'{"a": 1}', "it has no metrics"),
        ({"metrics": None}, "it has no metrics"),
        ({"metrics": {}}, "metrics has no pass@1"),
        ({"metrics": {"pass@1": 0.5}}, "metrics has no value, low, high and n of pass@1"),
        ({"metrics": {"pass@1": {"value": "a", "low": 0, "high": 1, "n": 3}}}, "no value, low, high and n of pass@1"),
        ({"metrics": {"pass@1": {"value": float("nan"), "low": 0, "high": 1, "n": 3}}}, "no value, low, high and n"),
        ({"metrics": {"pass@1": {"value": 10**400, "low": 0, "high": 1, "n": 3}}}, "no value, low, high and n"),
        ({"temperature": None}, "temperature is None"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"num_problems": "x"}, "num_problems is 'x'"),
        ({"num_problems": -1}, "num_problems is -1"),
        ({"k": [1]}, "k is [1]"),
        ({"name": 3}, "name is 3"),
        ({"task": {"a": 1}}, "task is {'a': 1}"),
        ({"benchmark": 3}, "benchmark is 3"),
        ({"model": None}, "model is None"),
    ],
)
def test_a_broken_summary_is_named_by_compare_and_audit_and_left_out_of_the_report(
    run: Path, change: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / SUMMARY
    if isinstance(change, bytes):
        file.write_bytes(change)
    else:
        changed_json(file, **change)
    base, final = (str(run / "evaluation" / name) for name in ("base", "final"))
    for words in (["--compare", base, final], ["--audit", final]):
        assert cli.main(["evaluate", *words]) == 2
        said = told(capsys)
        assert f"{file} is not" in said
        assert reason in said
        assert "make it again with tinyzero evaluate --overwrite" in said
    files = read_run(run)
    assert set(files.evaluations) == {"base"}
    assert any(f"evaluation/final cannot be read: {file} is not" in line for line in files.missing)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "cannot be read"),
        (lambda file: file.write_bytes(b""), "Parquet file size is 0 bytes"),
        (lambda file: file.write_bytes(b"hello, world"), "cannot be read"),
        (lambda file: file.write_bytes(bytes(file.stat().st_size)), "cannot be read"),
        (lambda file: pq.write_table(pq.read_table(file).slice(0, 0), file), "has no samples"),
        (lambda file: rewritten(file, "is_correct", None), "it has no column is_correct"),
        (lambda file: rewritten(file, "row", None), "it has no column row"),
        (lambda file: rewritten(file, "completion", pa.scalar(None, pa.string())), "column completion has empty cells"),
        (lambda file: rewritten(file, "num_completion_tokens", "many"), "Failed to parse string: 'many'"),
        (lambda file: rewritten(file, "is_correct", [1]), "Unsupported cast from list"),
        (lambda file: rewritten(file, "completion", b"\xff\xfe"), "Invalid UTF8"),
        (lambda file: rewritten(file, "row", "[1]"), "column row must hold objects"),
        (lambda file: rewritten(file, "row", "{"), "cannot be read"),
        (lambda file: rewritten(file, "row", "[" * 5000), "cannot be read"),
    ],
)
def test_broken_samples_are_named_by_compare_and_left_out_of_the_report(
    run: Path, damage: Damage, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / SAMPLES
    damage(file)
    base, final = (str(run / "evaluation" / name) for name in ("base", "final"))
    assert cli.main(["evaluate", "--compare", base, final]) == 2
    said = told(capsys)
    assert str(file) in said
    assert reason in said
    files = read_run(run)
    assert set(files.evaluations) == {"base"}
    assert any(str(file) in line for line in files.missing)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda file: file.write_bytes(b""),
        lambda file: rewritten(file, "outcome", None),
        lambda file: rewritten(file, "outcome", pa.scalar(None, pa.string())),
        lambda file: rewritten(file, "problem", "x"),
        lambda file: rewritten(file, "outcome", [1]),
        lambda file: pq.write_table(pq.read_table(file).slice(0, 0), file),
        lambda file: file.rename(file.with_name("train-x.parquet")),
    ],
)
def test_a_broken_shard_of_rollouts_is_left_out_of_the_report_and_said(run: Path, damage: Damage) -> None:
    damage(run / "rollouts" / "train-00000002.parquet")
    files = read_run(run)
    assert [step for step, _ in files.batches] == [1, 3, 4, 5, 6]
    assert any(line.startswith("1 of rollouts/ cannot be read and are left out: train-") for line in files.missing)


def test_rows_of_rollouts_that_are_no_objects_are_not_shown(run: Path) -> None:
    for file, row in zip(sorted((run / "rollouts").glob("eval-*")), ("[1]", "{"), strict=True):
        rewritten(file, "row", row)
    assert all(isinstance(row, dict) for row, _ in read_run(run).problems)


# ---- files that are folders


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.lock", "report.html"])
def test_a_folder_in_the_place_of_a_file_is_named_before_a_run_goes_on(run: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    cfg = compose(["+countdown=grpo-tiny", f"trainer.resume_from_checkpoint={run}"])
    with pytest.raises(ConfigError) as error:
        run_folder.check_place(cfg)
    assert str(error.value).startswith(f"{run / name} cannot be written: it is a folder")


def test_a_report_that_cannot_be_written_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").mkdir()
    assert cli.main(["report", str(run)]) == 2
    assert f"{run / 'report.html'} cannot be written: it is a folder" in told(capsys)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    assert "metrics.jsonl has no training step, so there are no curves." in read_run(run).missing
