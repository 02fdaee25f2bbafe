"""Exit codes that schedulers and scripts act on."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import pytest
import torch

from tinyzero_trl import failures
from tinyzero_trl.failures import ConfigError, DiskFull, NumericFailure, RewardFailure, RunLocked, exit_code_of


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("no key x"), 2, "no key x"),
        (RewardFailure("nothing earned"), 3, "nothing earned"),
        (NumericFailure("not finite"), 4, "not finite"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), 5, "lower trainer.per_device_train_batch_size"),
        (RunLocked("in use"), 6, "in use"),
        (DiskFull("full"), 8, "full"),
        (KeyboardInterrupt(), 130, "stopped at once"),
    ],
)
def test_each_way_to_fail_has_its_exit_code_and_one_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def program(words: Sequence[str]) -> int:
        raise error

    assert exit_code_of(program, []) == code
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_of_a_mistake_that_all_processes_find_only_the_first_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(words: Sequence[str]) -> int:
        raise ConfigError("no key x")

    monkeypatch.setattr(failures, "PATIENCE", 0)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        exit_code_of(program, [])
    assert ended.value.code == 2
    assert capsys.readouterr().err == ""
    # A rank that no launcher of several can have given is a left-over, and nobody else is there to speak.
    monkeypatch.delenv("WORLD_SIZE")
    assert exit_code_of(program, []) == 2
    assert capsys.readouterr().err == "error (process 1): no key x\n"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), NumericFailure("not numbers")])
def test_what_may_happen_to_one_process_alone_is_said_by_it(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(words: Sequence[str]) -> int:
        raise error

    monkeypatch.setenv("RANK", "3")
    exit_code_of(program, [])
    assert capsys.readouterr().err.startswith("error (process 3): ")


def test_a_bug_of_ours_is_not_swallowed() -> None:
    def program(words: Sequence[str]) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        exit_code_of(program, [])
