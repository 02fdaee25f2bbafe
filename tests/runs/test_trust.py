"""Code that a run folder names runs unasked only where this user made the run; and a run goes on by its own words."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
import yaml

from run_folders import write_run
from tinyzero_trl import cli, config
from tinyzero_trl.evaluation import audit, command_line
from tinyzero_trl.evaluation.plan import Settings, make_plan
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.models import load_path
from tinyzero_trl.runs import folder as run_folder
from tinyzero_trl.runs import record, resuming
from tinyzero_trl.storage import manifest, trust

TINY = "+countdown=grpo-tiny"
TASK_FILE = """
from pathlib import Path
Path(__file__).with_suffix(".ran").touch()
from dataclasses import replace
from tinyzero_trl.tasks.countdown import TASK as COUNTDOWN
TASK = replace(COUNTDOWN, name="theirs")

def wording(row):
    return {"prompt": "?", "prefill": ""}
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """A task of one's own that leaves a trace when it is run."""
    file = tmp_path / "theirs.py"
    file.write_text(TASK_FILE)
    return file


def made(path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Path:
    """A run folder as `grpo.py TINY words` writes it, with a model and a checkpoint."""
    monkeypatch.setattr(sys, "argv", ["/repo/src/tinyzero_trl/grpo.py", TINY, *words])
    path.mkdir()
    record.write_record(path, config.compose([TINY, *words]), data={}, seeds={})
    for name in ("model", "checkpoint-2"):
        shutil.copytree(load_path("tiny"), path / name)
        manifest.seal(path / name, step=2, world_size=1)
    return path


def as_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From here on this is another user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))


def test_a_task_of_ones_own_run_is_evaluated_without_a_word(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "run", monkeypatch, f"task={task_file}:TASK", f"format={task_file}:wording")
    plan = make_plan(Settings(str(run)))
    assert (plan.task.name, plan.format) == ("theirs", f"{task_file}:wording")
    moved = shutil.copytree(run, tmp_path / "moved")
    assert make_plan(Settings(str(moved))).task.name == "theirs"


@pytest.mark.parametrize("named", ["task", "format"])
def test_code_that_a_sent_run_names_is_not_run_unless_it_is_trusted(
    named: str, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = {"task": f"{task_file}:TASK", "format": f"{task_file}:wording"}[named]
    run = made(tmp_path / "run", monkeypatch, f"{named}={name}")
    as_another(monkeypatch, tmp_path)
    assert command_line.main(["--model_path", str(run), "--n", "2"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{run / 'run.yaml'} names code to run, {name} ({task_file})" in said
    assert "--trust-code" in said
    assert not task_file.with_suffix(".ran").exists()
    assert make_plan(Settings(str(run), trust_code=True)).folder == run / "evaluation" / "final"
    assert task_file.with_suffix(".ran").exists()


def test_what_a_person_names_is_run_whoever_made_the_model(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "run", monkeypatch, f"task={task_file}:TASK")
    as_another(monkeypatch, tmp_path)
    assert make_plan(Settings(str(run), task=f"{task_file}:TASK")).task.name == "theirs"


def test_a_model_in_another_folder_is_not_trusted_for_the_run_its_output_goes_to(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "run", monkeypatch, f"task={task_file}:TASK")
    as_another(monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match="names code to run"):
        make_plan(Settings("tiny", output=run))


def test_built_in_names_of_a_sent_run_need_no_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "run", monkeypatch)
    as_another(monkeypatch, tmp_path)
    assert make_plan(Settings(str(run))).task.name == "countdown"


def change_a_byte(run: Path, task_file: Path) -> None:
    file = run / "run.yaml"
    file.write_text(file.read_text().replace("seed: ", "seed:  ", 1))


def name_a_file_elsewhere(run: Path, task_file: Path) -> None:
    other = task_file.parent / "elsewhere"
    other.mkdir()
    shutil.copy(task_file, other)
    file = run / "run.yaml"
    text = file.read_text().replace(f"{task_file}:TASK", f"{other / task_file.name}:TASK")
    file.write_text(text)


def sign_with_nothing(run: Path, task_file: Path) -> None:
    file = run / "run.yaml"
    content, mark, _ = file.read_text().rpartition(trust.SIGNED.decode())
    file.write_text(f"{content}{mark}\n")


def write_by_hand(run: Path, task_file: Path) -> None:
    code = {"code": {f"{task_file}:TASK": str(task_file)}}
    (run / "run.yaml").write_text(yaml.safe_dump({"task": f"{task_file}:TASK", "format": "base", "provenance": code}))


@pytest.mark.parametrize("forge", [change_a_byte, name_a_file_elsewhere, sign_with_nothing, write_by_hand])
def test_a_record_that_was_changed_or_forged_is_nobodys_own(
    forge: object, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "run", monkeypatch, f"task={task_file}:TASK")
    forge(run, task_file)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="names code to run"):
        make_plan(Settings(str(run)))


def test_a_module_is_found_without_running_it_or_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('ran')")
    (package / "tasks.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    names = [
        "their_package.tasks:TASK",
        "their_package:TASK",
        "nowhere.at.all:TASK",
        "countdown",
        "base",
        "os:system",
        "a:",
    ]
    assert trust.code_of(names) == {
        "their_package.tasks:TASK": str(package / "tasks.py"),
        "their_package:TASK": str(package / "__init__.py"),
        "os:system": os.__file__,
    }


def test_an_audit_imports_no_file_that_an_evaluation_names(task_file: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", num_steps=1, num_problems=4, num_eval=2) / "evaluation" / "final"
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"task": f"{task_file}:TASK"}))
    with pytest.raises(ValueError, match="there is no second grader of"):
        audit.audit(folder)
    assert not task_file.with_suffix(".ran").exists()


def pickled(path: Path) -> Path:
    """A checkpoint of DeepSpeed in the place of checkpoint-2."""
    checkpoint = path / "checkpoint-2"
    (checkpoint / "global_step2").mkdir()
    (checkpoint / "global_step2" / "mp_rank_00_model_states.pt").write_bytes(b"pickle")
    manifest.seal(checkpoint, step=2, world_size=1)
    return checkpoint


def test_a_pickled_checkpoint_is_loaded_where_this_user_wrote_it_or_trusts_who_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "run", monkeypatch)
    as_another(monkeypatch, tmp_path)
    cfg = config.compose([TINY, f"trainer.resume_from_checkpoint={run}"])
    assert run_folder.choose(cfg).resume_from == run / "checkpoint-2", "safetensors need no trust"
    monkeypatch.undo()
    checkpoint = pickled(run)
    assert run_folder.choose(cfg).resume_from == checkpoint
    as_another(monkeypatch, tmp_path)
    said = r"checkpoint-2 was not written by .*global_step2/mp_rank_00_model_states.pt is a pickle, .*--trust-code"
    with pytest.raises(ConfigError, match=said):
        run_folder.choose(cfg)
    with pytest.raises(ConfigError, match=said):
        run_folder.choose(config.compose([TINY, f"trainer.resume_from_checkpoint={checkpoint}"]))
    assert run_folder.choose(cfg, trusts_code=True).resume_from == checkpoint


def test_a_pickle_laid_beside_a_signed_checkpoint_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "run", monkeypatch)
    checkpoint = pickled(run)
    (checkpoint / "global_step3").mkdir()
    (checkpoint / "global_step3" / "mp_rank_00_model_states.pt").write_bytes(b"another's")
    with pytest.raises(ConfigError, match="global_step3"):
        run_folder.choose(config.compose([TINY, f"trainer.resume_from_checkpoint={run}"]))


def test_the_key_is_made_once_and_is_only_the_users_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    signed = trust.signature(b"a")
    assert signed == trust.signature(b"a")
    assert stat.S_IMODE(trust.key_file().stat().st_mode) == 0o600
    assert os.listdir(trust.key_file().parent) == ["key"]
    assert trust.is_own(b"a", signed)
    assert not trust.is_own(b"b", signed)


def test_where_no_key_can_be_kept_runs_are_written_unsigned_and_are_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    run = made(tmp_path / "run", monkeypatch)
    assert "signed" not in (run / "run.yaml").read_text()
    assert not trust.is_own_file(run / "run.yaml")
    assert manifest.why_not_usable(run / "model") is None


def test_a_run_knows_the_words_processes_and_folder_it_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TINYZERO_ACCELERATE_CONFIG", str(cli.ACCELERATE_CONFIGS / "zero2.yaml"))
    monkeypatch.chdir(tmp_path)
    words = ["trainer.max_steps=4", "data.seed=7", f"output_dir={tmp_path / 'run'}", "model.dtype=float32"]
    run = made(tmp_path / "run", monkeypatch, *words)
    found = resuming.launch_of(run, ["+trainer.max_steps=9"])
    assert found == resuming.Launch(
        program="grpo",
        words=[
            TINY, "data.seed=7", "model.dtype=float32", "+trainer.max_steps=9", f"trainer.resume_from_checkpoint={run}",
        ],
        num_processes=2,
        accelerate_config="zero2",
        working_directory=tmp_path,
    )  # fmt: skip
    assert resuming.launch_of(run / "checkpoint-2").words[-1] == f"trainer.resume_from_checkpoint={run}/checkpoint-2"


def test_a_run_of_a_recipe_of_ones_own_goes_on_from_the_recipe_or_else_from_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET_TOKEN", "very-secret")
    text = (
        "# @package _global_\ndefaults: [/countdown/grpo-tiny, _self_]\n"
        "trainer: {seed: 9, max_steps: 2, hub_token: '${oc.env:SECRET_TOKEN}'}\nrewards: {'mine.py:f': 0.5}\n"
    )
    for place in ("own/countdown/grpo-mine.yaml", "recipes/countdown/grpo-mine.yaml", "mine.yaml"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    (tmp_path / "elsewhere").mkdir()
    for number, recipe in enumerate(
        (["+countdown=grpo-mine", "--config-dir", "own"], ["+countdown=grpo-mine"], ["mine.yaml"])
    ):
        run, words = tmp_path / f"run{number}", [*recipe, "trainer.num_generations=4", "+give_up_after=7"]
        run.mkdir()
        monkeypatch.setattr(sys, "argv", ["grpo.py", *words])
        record.write_record(run, config.compose(words), data={}, seeds={})
        assert "very-secret" not in (run / "run.yaml").read_text()
        monkeypatch.chdir(tmp_path / "elsewhere")  # `resume` goes where the run was started
        found = resuming.launch_of(run, ["trainer.max_steps=3"])
        monkeypatch.chdir(tmp_path)
        again = config.compose(found.words)
        assert (again.trainer.max_steps, again.trainer.seed, again.trainer.hub_token) == (3, 9, "very-secret")
        resuming.check_same_run(run, again)
    for folder in ("own", "recipes"):
        shutil.rmtree(tmp_path / folder)
    (tmp_path / "mine.yaml").unlink()
    for number in range(3):
        run = tmp_path / f"run{number}"
        found = resuming.launch_of(run, ["trainer.max_steps=3"])
        assert found.words == [
            str(run / "run.yaml"), "trainer.num_generations=4", "+give_up_after=7", "trainer.max_steps=3",
            f"trainer.resume_from_checkpoint={run}",
        ]  # fmt: skip
        again = config.compose(found.words)
        assert (again.trainer.max_steps, again.trainer.seed, again.trainer.hub_token) == (3, 9, None)
        assert dict(again.rewards) == {"equation": 1.0, "mine.py:f": 0.5}
        resuming.check_same_run(run, again)


def test_a_run_that_went_on_goes_on_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "run", monkeypatch)
    again = [TINY, "data.seed=1", "trainer.resume_from_checkpoint=/elsewhere", "--trust-code"]
    monkeypatch.setattr(sys, "argv", ["grpo.py", *again])
    record.write_record(run, config.compose(again[:2]), data={}, seeds={})
    assert resuming.launch_of(run).words == [TINY, "data.seed=1", f"trainer.resume_from_checkpoint={run}"]
    assert trust.is_own_file(run / "run.yaml")


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        ({}, "does not say how the run was started"),
        ({"command": None}, "does not say how the run was started"),
        ({"command": ["grpo.py"]}, "does not say how the run was started"),
        ({"command": "grpo.py 'unclosed"}, "does not say how the run was started"),
        ({"command": "src/tinyzero_trl/sft.py +countdown=sft-tiny"}, "was started by sft.py, and only runs of grpo.py"),
        ({"command": "/bin/sh -c ls"}, "was started by sh"),
        (
            {"command": f"grpo.py {TINY} trainer.hub_token='<redacted>'"},
            "started with a secret that run.yaml does not keep; say it again: tinyzero resume .* trainer.hub_token=",
        ),
    ],
)
def test_a_run_that_cannot_be_started_again_by_its_record_says_why(
    provenance: dict[str, object], said: str, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"task": "countdown", "provenance": provenance}))
    with pytest.raises(ConfigError, match=said):
        resuming.launch_of(tmp_path)


def test_a_secret_is_said_again(tmp_path: Path) -> None:
    command = {"command": f"grpo.py {TINY} trainer.hub_token='<redacted>'"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"task": "countdown", "provenance": command}))
    assert resuming.launch_of(tmp_path, ["trainer.hub_token=hf_x"]).words[:2] == [TINY, "trainer.hub_token=hf_x"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task={file}:TASK"], "{file}:TASK ({file})"),
        (["format={file}:wording"], "{file}:wording ({file})"),
        (["+rewards.{file}:earn=1"], "{file}:earn ({file})"),
        (["trainer.trust_remote_code=true"], "trainer.trust_remote_code: True"),
        (
            ["trainer.model_init_kwargs={{trust_remote_code: true}}"],
            "trainer.model_init_kwargs.trust_remote_code: True",
        ),
        (["model.attn_implementation=somebody/kernel"], "model.attn_implementation: somebody/kernel"),
    ],
)
def test_a_sent_run_is_not_resumed_where_its_command_runs_code_of_theirs(
    words: list[str],
    said: str,
    task_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(cli, "launch", lambda program, words, **how: started.append(list(words)) or 0)
    words = [word.format(file=task_file) for word in words]
    run = made(tmp_path / "run", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["grpo.py", TINY, *words])
    record.write_record(run, config.compose([TINY]), data={}, seeds={})
    assert cli.main(["resume", str(run)]) == 0, "of this user's own"
    as_another(monkeypatch, tmp_path)
    assert cli.main(["resume", str(run)]) == 2
    shown = capsys.readouterr().err
    assert said.format(file=task_file) in shown
    assert "--trust-code" in shown
    assert shown.count("\n") == 1
    assert not task_file.with_suffix(".ran").exists()
    assert cli.main(["resume", str(run), "--trust-code"]) == 0
    given = [*words, f"trainer.resume_from_checkpoint={run}"]
    assert started == [[TINY, *given], [TINY, *given, "--trust-code"]]


def test_a_sent_run_of_built_in_names_is_resumed_here_and_not_with_a_file_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: list[object] = []
    monkeypatch.setattr(cli, "launch", lambda program, words, **given: how.append(given["config"]) or 0)
    theirs = tmp_path / "accelerate.yaml"
    shutil.copy(cli.ACCELERATE_CONFIGS / "cpu.yaml", theirs)
    monkeypatch.setenv("TINYZERO_ACCELERATE_CONFIG", str(theirs))
    monkeypatch.chdir(tmp_path)
    run = made(tmp_path / "run", monkeypatch)
    assert cli.main(["resume", str(run)]) == 0
    as_another(monkeypatch, tmp_path)
    monkeypatch.chdir("/")
    assert cli.main(["resume", str(run)]) == 0
    assert how == [theirs, cli.ACCELERATE_CONFIGS / "cpu.yaml"]
    assert Path.cwd() == Path("/"), "nor from a folder of theirs"


def test_a_supervised_run_is_not_continued() -> None:
    from tinyzero_trl import sft

    with pytest.raises(ConfigError, match="trainer.resume_from_checkpoint=True: a supervised run is not continued"):
        sft.train(["+countdown=sft-tiny", "trainer.resume_from_checkpoint=true"])


def test_the_record_says_which_file_each_name_stood_for(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "run", monkeypatch, f"task={task_file}:TASK", f"+rewards.{task_file}:earn=1")
    content = yaml.safe_load((run / "run.yaml").read_text())
    assert content["provenance"]["code"] == {f"{task_file}:TASK": str(task_file), f"{task_file}:earn": str(task_file)}


def test_what_is_typed_counts_from_where_it_is_typed_and_no_processes_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    how: list[object] = []
    monkeypatch.setattr(cli, "launch", lambda program, words, **given: how.append(given) or 0)
    run = made(tmp_path / "run", monkeypatch)
    (tmp_path / "here").mkdir()
    shutil.copy(cli.ACCELERATE_CONFIGS / "ddp.yaml", tmp_path / "here" / "mine.yaml")
    monkeypatch.chdir(tmp_path / "here")
    assert cli.main(["resume", "../run", "--accelerate_config", "mine.yaml", "--processes", "2"]) == 0
    assert how == [{"config": tmp_path / "here" / "mine.yaml", "num_processes": 2}]
    for words, said in (
        (["--processes", "0"], "--processes must be at least 1, got 0"),
        (["--accelerate_config", "zero9"], "there is no accelerate config 'zero9'; there is"),
    ):
        assert cli.main(["resume", str(run), *words]) == 2
        shown = capsys.readouterr().err
        assert said in shown
        assert shown.count("\n") == 1
    assert len(how) == 1
