"""Parameters on their way to a server: whole, under new names, and gone afterwards."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tinyzero_trl.config import free_port
from tinyzero_trl.failures import DiskFull
from tinyzero_trl.generation import weights
from tinyzero_trl.generation.weights import WeightFolder


def named(num: int = 6) -> dict[str, torch.Tensor]:
    return {f"layers.{i}.weight": torch.full((8, 16), float(i)) for i in range(num)}


def freed_behind(params: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """As ZeRO-3 gathers: a parameter is there until the next is asked for."""
    for name, parameter in params.items():
        gathered = parameter.clone()
        yield name, gathered
        gathered.fill_(float("nan"))


@pytest.mark.parametrize("file_bytes", [2**29, 600, 1])
def test_every_parameter_arrives_whatever_the_size_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    monkeypatch.setattr(weights, "FILE_BYTES", file_bytes)
    folder = WeightFolder(str(tmp_path))
    files = folder.write(freed_behind(named()))
    assert len(files) == {2**29: 1, 600: 3, 1: 6}[file_bytes]
    arrived = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert arrived.keys() == named().keys()
    assert all(torch.equal(arrived[name], tensor) for name, tensor in named().items())


def test_a_new_transfer_has_new_names_and_the_old_files_are_gone(tmp_path: Path) -> None:
    folder = WeightFolder(str(tmp_path))
    first, second = folder.write(named().items()), folder.write(named().items())
    assert set(first).isdisjoint(second)
    assert sorted(folder.path.iterdir()) == sorted(second)
    folder.remove_files()
    assert not list(folder.path.iterdir())
    folder.remove()
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_a_folder_of_its_own_as_peft_saves_it(tmp_path: Path) -> None:
    from peft import LoraConfig

    folder = WeightFolder(str(tmp_path))
    folder.write(named().items())
    first, second = (folder.write_adapter(LoraConfig(r=4), named()) for _ in range(2))
    assert first != second
    assert list(folder.path.iterdir()) == [second]
    assert LoraConfig.from_pretrained(str(second)).r == 4
    assert load_file(second / "adapter_model.safetensors").keys() == named().keys()
    folder.remove_files()
    assert not list(folder.path.iterdir())


def test_floats_are_written_as_the_server_computes(tmp_path: Path) -> None:
    params = {"weight": torch.ones(4), "index": torch.arange(4)}
    (file,) = WeightFolder(str(tmp_path), dtype=torch.bfloat16).write(params.items())
    assert [tensor.dtype for _, tensor in sorted(load_file(file).items())] == [torch.int64, torch.bfloat16]


def test_a_full_disk_is_said_in_one_line_after_every_parameter_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    monkeypatch.setattr(weights, "FILE_BYTES", 1)
    left = iter(named().items())
    with pytest.raises(DiskFull, match="generation.shared_folder"):
        WeightFolder(str(tmp_path)).write(left)
    with pytest.raises(DiskFull, match="generation.shared_folder"):
        WeightFolder(str(tmp_path)).write_adapter(LoraConfig(r=4), named())
    assert next(left, None) is None, "other processes gather along, and would wait"


ONE_OF_TWO = """
import os, sys
from accelerate import PartialState
from tinyzero_trl.failures import DiskFull
from tinyzero_trl.generation.weights import raise_together

rank = PartialState(cpu=True).process_index
raise_together(None)
try:
    raise_together(DiskFull("the disk of rank 1 is full") if rank == 1 else None)
except DiskFull as full:
    print(rank, full)
"""


@pytest.mark.slow
def test_a_full_disk_of_one_process_is_raised_on_all() -> None:
    """Else the others wait for it until torch.distributed gives up, half an hour later."""
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert said == [f"{rank} the disk of rank 1 is full\n" for rank in (0, 1)]
