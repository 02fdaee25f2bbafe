"""`tinyzero <verb>`: help everywhere, one clear line for a mistake, nothing heavy before it is needed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tinyzero_trl import cli, launch
from tinyzero_trl.config import schema

ROOT = Path(__file__).resolve().parents[1]


def test_without_a_verb_it_lists_every_verb(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    try:
        code = cli.main([verb, "--help"])
    except SystemExit as ended:  # argparse ends by itself
        code = ended.code
    assert code == 0
    shown = capsys.readouterr().out
    assert "usage: " in shown
    assert "tinyzero" in shown
    assert "example" in shown.lower()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["trian"],
            f"there is no verb 'trian'; there is {', '.join(cli.VERBS)}; did you mean train?",
        ),
        (["train"], "no recipe given; `tinyzero recipes` lists them"),
        (["train", "trainer.max_steps=1"], "no recipe given; `tinyzero recipes` lists them"),
        (
            ["train", "+countdown=grpo-tiny", "--accelerate_config", "zero9"],
            "there is no accelerate config 'zero9'; there is",
        ),
        (["prepare"], "which task? there is countdown, math, multiplication"),
        (["prepare", "sudoku"], "there is no task 'sudoku'; there is countdown, math, multiplication"),
        (["report", "no/such/run"], "no/such/run is not a run folder: it has no run.yaml"),
        (["recipes", ""], "there are no recipes of ''; there are some of countdown"),
        (["recipes", "sudoku"], "there are no recipes of 'sudoku'; there are some of countdown, math, multiplication"),
    ],
)
def test_a_mistake_is_answered_with_one_clear_line(words, said, capsys):
    assert cli.main(words) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_recipes_lists_each_with_model_and_hardware(capsys):
    assert cli.main(["recipes"]) == 0
    shown = capsys.readouterr().out
    for path in sorted((ROOT / "recipes").glob("*/*.yaml")):
        if path.parent.name != "accelerate_configs":
            assert f"+{path.parent.name}={path.stem}" in shown
    assert "two CPU cores" in shown.replace("\n", " ")


def test_a_broken_recipe_is_listed_with_the_reason(capsys, tmp_path):
    (tmp_path / "countdown").mkdir()
    (tmp_path / "countdown" / "grpo-[mine].yaml").write_text("- a\n")
    (tmp_path / "countdown" / "grpo-good.yaml").write_text("# @package _global_\n# Expect: nothing\ntask: countdown\n")
    assert cli.main(["recipes", "countdown", "--config-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "+countdown=grpo-[mine]" in shown
    assert "holds a list" in shown
    assert "+countdown=grpo-good" in shown
    assert "+countdown=grpo-tiny" in shown


def test_a_refused_key_is_answered_before_anything_heavy_is_imported(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    schema.trl_fields.cache_clear()
    schema.trl_fields()
    code = (
        "import sys; from tinyzero_trl import cli; code = cli.main(['train', '+countdown=grpo-tiny', 'trainer.lr=1']); "
        "print(code, [m for m in ('torch', 'trl', 'transformers', 'accelerate', 'datasets') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "2 []"
    assert (
        run.stderr == "tinyzero train: command line: there is no key trainer.lr; did you mean trainer.learning_rate?\n"
    )


def test_train_takes_a_recipe_by_its_path(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(cli, "launch", lambda program, words, **options: calls.append((program, words)) or 0)
    mine = tmp_path / "sft-mine.yaml"
    mine.write_text("# @package _global_\ndefaults: [/countdown/sft-tiny, _self_]\n")
    assert cli.main(["train", str(mine), "trainer.max_steps=1"]) == 0
    assert calls == [("sft", [str(mine), "trainer.max_steps=1"])]


def test_a_task_narrows_the_list_of_recipes(capsys):
    assert cli.main(["recipes", "multiplication"]) == 0
    shown = capsys.readouterr().out
    assert "+multiplication=" in shown
    assert "+countdown=" not in shown


def test_the_command_imports_nothing_heavy_before_a_verb_runs():
    code = "import sys, tinyzero_trl.cli; print([m for m in ('torch', 'trl', 'hydra', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_train_takes_the_program_from_the_recipe_and_hands_everything_else_on(monkeypatch):
    calls = []
    monkeypatch.setattr(cli, "launch", lambda program, words, **options: calls.append((program, words, options)) or 7)
    code = cli.main(
        ["train", "+countdown=sft-tiny", "trainer.max_steps=1", "--processes", "2", "--accelerate_config", "zero1"]
    )
    assert code == 7
    program, words, options = calls[0]
    assert (program, words) == ("sft", ["+countdown=sft-tiny", "trainer.max_steps=1"])
    assert options == {"config": ROOT / "recipes/accelerate_configs/zero1.yaml", "num_processes": 2}


GPUS = "\n".join(f"GPU {index}: NVIDIA GeForce RTX 4090 Laptop GPU (UUID: GPU-{index}f)" for index in range(8))


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """A machine of eight GPUs, by an nvidia-smi of its own; `gpus(words)` is how `train` would launch there."""

    def tell(text: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    def launched(*words: str) -> tuple[str, int | None]:
        calls = []
        monkeypatch.setattr(cli, "launch", lambda program, words, **options: calls.append(options) or 0)
        assert cli.main(["train", *words]) == 0
        return calls[0]["config"].stem, calls[0]["num_processes"]

    tell(f"cat <<'END'\n{GPUS}\nEND")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is as before after the test, also where `train` sets it
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    launched.tell = tell
    return launched


@pytest.mark.parametrize(
    ("mask", "number"),
    [(None, 8), ("0,1", 2), ("GPU-3f,5", 2), ("", 0), ("-1", 0), ("NoDevFiles", 0), ("2,99,3", 1), ("GPU-", 0)],
)
def test_train_starts_a_process_for_each_gpu_that_the_mask_leaves(gpus, monkeypatch, mask, number):
    if mask is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert gpus("+countdown=grpo-qwen-2.5-3b-base") == (("zero2", number) if number else ("cpu", 1))


def test_train_on_gpus_takes_the_accelerate_config_of_the_recipes_own_command(gpus, capsys):
    assert gpus("+countdown=grpo-qwen-2.5-3b-base") == ("zero2", 8)
    assert "8 processes on GPU 0, 1, 2, 3, 4, 5, 6, 7, zero2" in capsys.readouterr().out
    assert gpus("+countdown=grpo-qwen-2.5-3b-base", "--accelerate_config", "ddp", "--processes", "2") == ("ddp", 2)
    assert gpus("+countdown=grpo-tiny") == ("ddp", 8)


@pytest.mark.parametrize("devices", ["6,7", '"6,7"', "'7, 6'"])
def test_train_leaves_the_gpus_of_the_server_to_it(gpus, devices):
    words = ["+countdown=grpo-qwen-2.5-3b-base", "generation.engine=server", f"generation.devices={devices}"]
    assert gpus(*words) == ("zero2", 6)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5"


def test_a_server_on_every_gpu_is_refused(gpus, capsys):
    words = ["train", "+countdown=grpo-tiny", "generation.engine=server", "generation.devices=0,1,2,3,4,5,6,7"]
    assert cli.main(words) == 2
    assert "leaves no GPU to train on; this machine has 0, 1, 2, 3, 4, 5, 6, 7" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["exit 9", "sleep 30"])
def test_a_driver_that_fails_or_hangs_counts_as_no_gpu(gpus, monkeypatch, text):
    gpus.tell(text)
    monkeypatch.setattr(launch, "SECONDS_OF_SMI", 0.5)
    assert gpus("+countdown=grpo-qwen-2.5-3b-base") == ("cpu", 1)


@pytest.fixture
def program(tmp_path):
    """Writes `fake.py` in the place of grpo.py, and starts it by `launch` in a process of its own."""
    configs = ROOT / "recipes" / "accelerate_configs"

    def write(body: str) -> list[str]:
        (tmp_path / "fake.py").write_text(textwrap.dedent(body))
        start = f"""
            import sys
            from pathlib import Path
            from tinyzero_trl import launch
            launch.PACKAGE = Path({str(tmp_path)!r})
            num_processes = int(sys.argv[1])
            config = Path({str(configs)!r}) / ("ddp.yaml" if num_processes > 1 else "cpu.yaml")
            sys.exit(launch.launch("fake", sys.argv[2:], config=config, num_processes=num_processes))
        """
        (tmp_path / "start.py").write_text(textwrap.dedent(start))
        return [sys.executable, str(tmp_path / "start.py")]

    return write


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_launch_returns_the_exit_code_of_the_program_and_adds_no_traceback(program, num_processes):
    command = program("import sys; print('error: one clear line', file=sys.stderr); sys.exit(6)")
    ended = subprocess.run([*command, str(num_processes), "+countdown=x"], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 6
    assert "error: one clear line" in ended.stderr
    assert "CalledProcessError" not in ended.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_launcher_ended_by_sigkill_takes_the_program_with_it_which_may_save(program, tmp_path, num_processes):
    command = program(
        """
        import os, pathlib, signal, sys, time
        from tinyzero_trl.launch import end_with_launcher
        here = pathlib.Path(sys.argv[1])
        def save(number, frame):
            (here / f"saved-{os.environ.get('RANK', 0)}").touch()
            sys.exit(143)
        signal.signal(signal.SIGTERM, save)
        end_with_launcher()
        (here / f"ready-{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))
        time.sleep(900)
        """
    )
    with subprocess.Popen([*command, str(num_processes), str(tmp_path)]) as started:
        deadline = time.monotonic() + 300
        while len(list(tmp_path.glob("ready-*"))) < num_processes and time.monotonic() < deadline:
            time.sleep(0.1)
        started.kill()
    while len(list(tmp_path.glob("saved-*"))) < num_processes and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(list(tmp_path.glob("saved-*"))) == num_processes


@pytest.mark.slow
def test_a_process_that_dies_takes_the_others_with_it(program):
    """T-11: nobody waits in a collective for one that is gone."""
    command = program(
        """
        import os, signal, time
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(900)
        """
    )
    ended = subprocess.run([*command, "2"], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 137


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_sigterm_reaches_the_program_which_ends_by_its_own_code(program, tmp_path, num_processes):
    command = program(
        """
        import os, pathlib, signal, sys, time
        here = pathlib.Path(sys.argv[1])
        def save(number, frame):
            (here / f"saved-{os.environ.get('RANK', 0)}").touch()
            sys.exit(143)
        signal.signal(signal.SIGTERM, save)
        (here / f"ready-{os.environ.get('RANK', 0)}").touch()
        time.sleep(900)
        """
    )
    with subprocess.Popen(
        [*command, str(num_processes), str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as started:
        deadline = time.monotonic() + 300
        while len(list(tmp_path.glob("ready-*"))) < num_processes and time.monotonic() < deadline:
            time.sleep(0.1)
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=300) == 143
    assert len(list(tmp_path.glob("saved-*"))) == num_processes


def test_a_process_ended_by_a_signal_has_the_code_a_shell_gives_it():
    assert [launch._exit_code(code) for code in (0, 2, -9, -15)] == [0, 2, 137, 143]
