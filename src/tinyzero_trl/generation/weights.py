"""The trainer's side of a weight transfer through files: writes parameters to .safetensors files that a server can read."""

from __future__ import annotations

import errno
import shutil
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file

from tinyzero_trl.failures import DiskFull

SHARED_MEMORY = Path("/dev/shm")
FILE_BYTES = 2**29
"""Bytes of parameters in one file; a file with a single parameter may be larger."""


class WeightFolder:
    """The folder of one trainer, in shared memory or at a place that the recipe names; removed when the trainer ends."""

    def __init__(self, parent: str | None, *, dtype: torch.dtype | None = None):
        """parent: a folder that trainer and server both see; None is shared memory, or a temporary folder if there is none.

        dtype: precision in which floating-point parameters are written; None keeps theirs.
        """
        place = Path(parent) if parent else SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        self.path = Path(tempfile.mkdtemp(prefix="tinyzero-weights-", dir=place))
        self.dtype = dtype

    def write(self, named_params: Iterable[tuple[str, torch.Tensor]]) -> list[Path]:
        """The files with the parameters, in order; files of an earlier call are removed.

        Each file has a new name: a server may still have the old files mapped. All parameters are taken from the iterator even if
        the disk is full, because other processes gather each along with this one.
        Raises: DiskFull.
        """
        self.remove_files()
        files: list[Path] = []
        held: dict[str, torch.Tensor] = {}
        failure: OSError | None = None
        num_bytes = 0
        for name, parameter in named_params:
            if failure:
                continue
            held[name] = self._kept(parameter)
            num_bytes += held[name].nbytes
            if num_bytes >= FILE_BYTES:
                failure = self._save(held, self.path / f"{uuid.uuid4().hex}.safetensors", files)
                held, num_bytes = {}, 0
        failure = failure or self._save(held, self.path / f"{uuid.uuid4().hex}.safetensors", files)
        if failure:
            raise self._full(failure)
        return files

    def write_adapter(self, config: Any, named_params: dict[str, torch.Tensor]) -> Path:
        """A new folder with an adapter as PEFT saves it; the folder of an earlier call is removed.

        config: PEFT's. Raises: DiskFull.
        """
        self.remove_files()
        folder = self.path / uuid.uuid4().hex
        held = {name: self._kept(parameter) for name, parameter in named_params.items()}
        failure: OSError | None = None
        try:
            folder.mkdir()
            config.save_pretrained(str(folder))
        except OSError as error:
            failure = error
        failure = failure or self._save(held, folder / "adapter_model.safetensors", [])
        if failure:
            raise self._full(failure)
        return folder

    def remove_files(self) -> None:
        """Remove the files, but not the folder."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def remove(self) -> None:
        """Remove the folder with its files."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _kept(self, parameter: torch.Tensor) -> torch.Tensor:
        # A copy: under ZeRO-3 a gathered parameter is freed when the iterator moves on.
        dtype = self.dtype if self.dtype and parameter.is_floating_point() else parameter.dtype
        return parameter.detach().to("cpu", dtype, copy=True).contiguous()

    def _full(self, failure: OSError) -> DiskFull:
        self.remove_files()
        free = shutil.disk_usage(self.path).free / 2**20
        return DiskFull(
            f"the weights do not fit into {self.path.parent} ({free:.0f} MiB left, {failure.strerror or failure}); "
            "name a roomier folder with generation.shared_folder"
        )

    def _save(self, held: dict[str, torch.Tensor], path: Path, files: list[Path]) -> OSError | None:
        if not held:
            return None
        try:
            save_file(held, path)
        except OSError as error:
            return error
        except Exception as error:  # safetensors raises an error of its own with the disk's in its text
            if "os error 28" not in str(error).lower() and "no space" not in str(error).lower():
                raise
            return OSError(errno.ENOSPC, "No space left on device")
        files.append(path)
        return None


def raise_together(failure: Exception | None) -> None:
    """Raise on every process the first failure that any of them had; a process that went on alone would wait for the others for ever."""
    for each in gather_object([failure]):
        if each is not None:
            raise each
