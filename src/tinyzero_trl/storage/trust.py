"""Signatures that tell this user's run folders from those of others, whose code runs only with `--trust-code`. Standard library only.

A run names Python files (a task, a format, a reward), and a checkpoint of DeepSpeed is a pickle, which can run any code as it is
loaded. Runs of this user sign what they write: HMAC-SHA256 with a key that only this user can read. A folder from somebody else has no
such signature.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from tinyzero_trl.failures import ConfigError
from tinyzero_trl.storage import files

OPTION = "--trust-code"
KEY_BYTES = 32
SIGNED = b"# signed by the user who ran it: "
"""Start of the last line of a run.yaml. The signature covers all bytes before this line."""


def key_file() -> Path:
    """Path of this user's key: `tinyzero/key` below $XDG_STATE_HOME, or below ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "tinyzero" / "key"


def signature(content: bytes) -> str | None:
    """This user's signature of `content`, in hex; None if no key can be stored, because the home folder is read-only."""
    key = _key()
    return hmac.digest(key, content, "sha256").hex() if key else None


def is_own(content: bytes, signed: object) -> bool:
    """True if `signed` is this user's signature of `content`."""
    key = _read(key_file())
    return (
        isinstance(signed, str)
        and bool(key)
        and hmac.compare_digest(
            hmac.digest(key, content, "sha256").hex().encode(), signed.encode("utf-8", errors="replace")
        )
    )


def signed_text(text: str) -> str:
    """A YAML text with a comment as its last line that signs it."""
    signed = signature(text.encode("utf-8"))
    return f"{text}{SIGNED.decode()}{signed}\n" if signed else text


def is_own_file(file: Path) -> bool:
    """True if this user wrote the file with `signed_text`, and nobody has changed it since."""
    content, mark, signed = file.read_bytes().rpartition(SIGNED)
    return bool(mark) and is_own(content, signed.decode("utf-8", errors="replace").rstrip("\n"))


def canonical(content: Mapping[str, Any]) -> bytes:
    """JSON that is the same for equal contents; the signature of a manifest covers it."""
    return json.dumps(content, sort_keys=True).encode("utf-8")


def without_option(words: Sequence[str]) -> tuple[list[str], bool]:
    """The words without `--trust-code`, and True if it was among them."""
    return [word for word in words if word != OPTION], OPTION in words


def code_of(names: Iterable[str]) -> dict[str, str]:
    """The absolute path of the Python file behind each name of the form `path/file.py:x` or `pkg.module:x`.

    Built-in names have no file, and modules that are not found are left out. Nothing is imported.
    """
    found = {}
    for name in names:
        where, colon, attribute = name.rpartition(":")
        if not (colon and where and attribute):
            continue
        file = os.path.abspath(os.path.expanduser(where)) if where.endswith(".py") else _file_of_module(where)
        if file is not None:
            found[name] = file
    return found


def check_code(names: Iterable[str], run: Path, record: Mapping[str, Any], *, trusts_code: bool) -> None:
    """Refuse code that is named by the run.yaml of `run` (its content: `record`) and that this user did not choose.

    A run of this user may name the code it named before, if the name still stands for the same file.
    Raises: ConfigError that names the file.
    """
    if trusts_code:
        return
    file = run / "run.yaml"
    had = (record.get("provenance") or {}).get("code") if is_own_file(file) else None
    had = had if isinstance(had, Mapping) else {}
    for name, path in code_of(names).items():
        if had.get(name) != path and os.path.exists(path):
            raise ConfigError(
                f"{file} names code to run, {name} ({path}), and no run of this user wrote that: read the file, "
                f"then add {OPTION}, or name your own"
            )


def check_pickles(checkpoint: Path, manifest: Mapping[str, Any], *, trusts_code: bool) -> None:
    """Refuse a checkpoint with pickles that this user's runs did not write; its files agree with `manifest`.

    Raises: ConfigError.
    """
    pickled = [path for folder in checkpoint.glob("global_step*") for path in folder.rglob("*.pt")]
    pickled += list(checkpoint.rglob(".metadata"))  # the pickle in torch's distributed checkpoints
    if trusts_code or not pickled:
        return
    content = {name: value for name, value in manifest.items() if name != "signature"}
    if is_own(canonical(content), manifest.get("signature")):
        listed = content.get("files") or {}
        pickled = [path for path in pickled if str(path.relative_to(checkpoint)) not in listed]
    if pickled:
        raise ConfigError(
            f"{checkpoint} was not written by a run of this user, and {pickled[0].relative_to(checkpoint)} is a pickle, which can run "
            f"code as it is loaded; add {OPTION} if you trust whoever made it"
        )


def _file_of_module(name: str) -> str | None:
    """The file that `import name` would run, found without importing its parents."""
    path: Any = None
    parts = name.split(".")
    for number in range(len(parts)):
        with suppress(Exception):  # import finders of other packages may raise anything
            spec = PathFinder.find_spec(".".join(parts[: number + 1]), path)
            if spec is None:
                return None
            path = spec.submodule_search_locations
            if number == len(parts) - 1:
                return os.path.abspath(spec.origin) if spec.has_location and spec.origin else None
            continue
        return None
    return None


def _key() -> bytes:
    """The key, created at its first use; empty if it cannot be stored."""
    file = key_file()
    if key := _read(file):
        return key
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):  # two first runs at once: both use the key that one of them wrote
            files.write_new(file, secrets.token_bytes(KEY_BYTES))
    except OSError:
        return b""
    return _read(file)


def _read(file: Path) -> bytes:
    try:
        key = file.read_bytes()
    except OSError:
        return b""
    return key if len(key) == KEY_BYTES else b""
