"""Files that appear whole or not at all, through no link that lies in their way."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import tinyzero_trl
from tinyzero_trl import storage
from tinyzero_trl.config import compose
from tinyzero_trl.evaluation import scores, unfinished
from tinyzero_trl.failures import ConfigError, DiskFull, explained
from tinyzero_trl.generation.authentication import make_token
from tinyzero_trl.runs import record
from tinyzero_trl.storage import manifest
from tinyzero_trl.storage.lock import locked

SECRET = "somebody's own file"


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_file_appears_whole_or_not_at_all_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "file"
    storage.write_text(target, "before")
    with pytest.raises(TypeError), storage.replacing(target) as file:
        file.writelines([b"half", 1])  # type: ignore[list-item]
    assert target.read_text() == "before"
    storage.write_text(target, "after", is_flushed=True)
    assert target.read_text() == "after"
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_are_kept_and_a_new_file_has_the_usual_ones(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        storage.write_text(tmp_path / "new", "")
        storage.write_text(tmp_path / "token", "", is_private=True)
    finally:
        os.umask(before)
    assert (mode_of(tmp_path / "new"), mode_of(tmp_path / "token")) == (0o640, 0o600)
    for mode in (0o600, 0o664, 0o444):
        (tmp_path / "new").chmod(mode)
        storage.write_text(tmp_path / "new", str(mode))
        assert mode_of(tmp_path / "new") == mode


def test_the_name_of_a_part_cannot_be_guessed_and_is_short_enough(tmp_path: Path) -> None:
    names = set()
    for name in ("file", "file", "file", "題" * 80):
        with storage.replacing(tmp_path / name) as file:
            names.add(Path(file.name).name)
            assert mode_of(Path(file.name)) & 0o111 == 0
    assert len(names) == 4
    assert all(name.startswith(".") and name.endswith(storage.PART) and len(name) > 20 for name in names)


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text(SECRET)
    (tmp_path / "target").symlink_to("theirs")
    storage.write_text(tmp_path / "target", "ours")
    assert (tmp_path / "theirs").read_text() == SECRET
    assert not (tmp_path / "target").is_symlink()


def test_what_is_appended_and_locked_goes_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text(SECRET)
    for name in ("metrics.jsonl", "run.lock"):
        (tmp_path / name).symlink_to("theirs")
    with pytest.raises(OSError, match="through none"):
        storage.append_text(tmp_path / "metrics.jsonl", "{}\n")
    with pytest.raises(OSError, match="through none"), locked(tmp_path):
        pass
    assert (tmp_path / "theirs").read_text() == SECRET


def test_what_is_appended_comes_after_what_was_there(tmp_path: Path) -> None:
    for line in ("a\n", "é\n"):
        storage.append_text(tmp_path / "log", line)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "a\né\n"


def test_parts_of_killed_processes_are_swept_away_and_nothing_else(tmp_path: Path) -> None:
    for name in (".samples.parquet.0123456789abcdef.part", "notes.part", ".hidden"):
        (tmp_path / name).touch()
    storage.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "notes.part"]


def test_a_folder_appears_whole_and_an_old_one_or_a_link_gives_way(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").write_text(SECRET)
    for target in (tmp_path / "new", tmp_path / "link", tmp_path / "new"):
        if target.name == "link":
            target.symlink_to(theirs)
        with storage.replacing_folder(target) as beside:
            (beside / "file").write_text("ours")
        assert (target / "file").read_text() == "ours"
    with pytest.raises(ZeroDivisionError), storage.replacing_folder(tmp_path / "new"):
        _ = 1 / 0
    storage.fresh_folder(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []
    assert (theirs / "file").read_text() == SECRET
    assert sorted(os.listdir(tmp_path)) == ["link", "new", "theirs"]


def _summary(folder: Path) -> None:
    scores.write(folder, summary={"metrics": {}}, samples=[])


def _request(folder: Path) -> None:
    unfinished.begin(folder, {"k": 1}, overwrite=False)
    completion = {"completion": "", "num_completion_tokens": 1, "is_truncated": False}
    unfinished.keep(folder, [0], [completion])


def _report(folder: Path) -> None:
    from tinyzero_trl.report import write_report

    write_report(folder)


def _record(folder: Path) -> None:
    record.write_record(folder, compose(["+countdown=grpo-tiny"]), data={}, seeds={})


def _metrics(folder: Path) -> None:
    storage.append_text(folder / "metrics.jsonl", json.dumps({"step": 1, "seconds": 1.0}) + "\n")
    record.cut_metrics(folder, step=1)


def _state(folder: Path) -> None:
    import torch

    from tinyzero_trl.trainer.state import save_state

    save_state(folder, {"tensor": torch.ones(2)}, rank=0)


def _fault(folder: Path) -> None:
    import torch

    from tinyzero_trl.trainer.non_finite import write_bad_step

    chunk = {"completion_ids": torch.ones(0, 1), "prompt_ids": torch.ones(0, 1)}
    found = {"losses": [0.0], "grad_norm": 1.0, "parameters": [], "tokenizer": None}
    assert write_bad_step(folder, [chunk], step=1, rank=0, **found)


WRITERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "report": (_report, ("report.html.part",)),
    "summary": (_summary, ("summary.json.part", "samples.parquet.part")),
    "request": (_request, ("request.part",)),
    "run.yaml": (_record, ("run.yaml.part",)),
    "metrics": (_metrics, ("metrics.jsonl.part",)),
    "manifest": (lambda folder: manifest.seal(folder, step=1), ("MANIFEST.json.part",)),
    "state": (_state, ("rollout_state-0.part",)),
    "fault": (
        _fault,
        ("faults/non-finite-step-1-rank-0.safetensors", "faults/non-finite-step-1-rank-0.json"),
    ),
    "token": (lambda folder: make_token(folder / "token"), (f"token.{os.getpid()}.part",)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_under_a_name_that_was_temporary_is_not_followed(name: str, tmp_path: Path) -> None:
    write, parts = WRITERS[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "theirs").write_text(SECRET)
    for part in parts:
        (folder / part).parent.mkdir(exist_ok=True)
        (folder / part).symlink_to(tmp_path / "theirs")
    write(folder)
    assert (tmp_path / "theirs").read_text() == SECRET
    assert not list(folder.rglob(".*.part"))


def test_no_writer_of_the_package_makes_a_temporary_name_of_its_own() -> None:
    source = Path(tinyzero_trl.__file__).parent
    text = {
        path.name: path.read_text(encoding="utf-8")
        for path in source.rglob("*.py")
        if path.parts[-2:] != ("storage", "files.py")
    }
    assert [name for name, words in text.items() if re.search(r"\.part[\"'}]", words)] == []
    assert [name for name, words in text.items() if "os.replace(" in words] == []


def test_no_other_file_hashes_files() -> None:
    source = Path(tinyzero_trl.__file__).parent
    hashing = {path.name for path in source.rglob("*.py") if "file_digest(" in path.read_text(encoding="utf-8")}
    assert hashing == {"files.py"}


# ---- where nothing can be written


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A full disk: a small tmpfs, for whoever may mount one."""
    yield from _mounted(tmp_path / "full", "size=64k", fill=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    yield from _mounted(tmp_path / "read-only", "ro,size=64k", fill=False)


def _mounted(place: Path, options: str, *, fill: bool) -> Iterator[Path]:
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a disk of this size")
    try:
        if fill:
            with (place / "fill").open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    pass
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def failure_at(folder: Path) -> tuple[type, str]:
    with pytest.raises(OSError, match="Errno") as error:
        storage.probe(folder)
    failure = explained(error.value)
    assert failure is not None
    assert "\n" not in str(failure)
    return type(failure), str(failure)


def test_a_full_disk_has_exit_code_8_and_a_read_only_one_2(full: Path, read_only: Path) -> None:
    kind, said = failure_at(full / "run")
    assert (kind, kind.exit_code) == (DiskFull, 8)
    assert str(full / "run") in said
    kind, said = failure_at(read_only / "countdown" / "run")
    assert (kind, kind.exit_code) == (ConfigError, 2)
    assert "read-only file system" in said
    with pytest.raises(OSError, match="No space") as error:
        storage.write_text(full / "report.html", "x" * 10_000)
    assert error.value.filename == str(full / "report.html")
    assert os.listdir(full) == ["fill"]


def test_a_folder_that_cannot_be_made_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    (tmp_path / "nothing").symlink_to("not there")
    assert f"{tmp_path / 'file'} is a file and not a folder" in failure_at(tmp_path / "file" / "a" / "run")[1]
    assert "leads back to itself" in failure_at(tmp_path / "one" / "run")[1]
    assert "too long" in failure_at(tmp_path / ("x" * 300))[1]
    assert "too long" in failure_at(tmp_path / "not" / "there" / ("題" * 90))[1]
    assert len(failure_at(tmp_path / ("x/" * 3000))[1]) < 500
    with pytest.raises(FileNotFoundError, match="a link to nothing"):
        storage.probe(tmp_path / "nothing" / "run")
    storage.probe(tmp_path / "not" / "there" / "yet")
    assert not (tmp_path / "not").exists()


def test_a_folder_where_a_file_is_to_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        storage.write_text(tmp_path / "report.html", "")
    said = str(explained(error.value))
    assert said.startswith(f"{tmp_path / 'report.html'} cannot be written: it is a folder")


def test_an_error_about_something_else_keeps_its_traceback() -> None:
    assert explained(OSError(5, "Input/output error", "file")) is None
    assert explained(ConnectionResetError(104, "Connection reset by peer")) is None
