"""The hub of models and data sets: one short question whether it answers, and hints for names that it does not have.

Without this, the hub's client would retry a misspelt name five times for half a minute. If the hub does not answer, the process
goes on as with HF_HUB_OFFLINE=1: what is in the cache loads, and anything else is reported, at once.
"""

from __future__ import annotations

import difflib
import os
import sys
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tinyzero_trl.failures import first_line

SHIPPED = ("tiny", "tiny-search")
"""Names of the models that come with this package."""
SECONDS = 3.0
"""Seconds that the hub has to answer, unless HF_HUB_ETAG_TIMEOUT is set."""
NEAR = 0.75
"""Similarity from which a name is worth a hint; 1 means equal."""


@cache
def reached() -> tuple[bool, str]:
    """True and an empty text if the hub answers, otherwise False and the reason as the end of a sentence; asked once in a process."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False, "HF_HUB_OFFLINE is set"
    given = os.environ.get("HF_HUB_ETAG_TIMEOUT", "")
    seconds = float(given) if given.isdigit() and int(given) else SECONDS
    reason = _why_not_reached(constants.ENDPOINT, seconds)
    if reason is None:
        return True, ""
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that this one starts
    if "datasets" in sys.modules:
        from datasets import config

        config.HF_HUB_OFFLINE = True
    return False, f"{constants.ENDPOINT} does not answer: {reason}"


def _why_not_reached(endpoint: str, seconds: float) -> str | None:
    """The reason why `endpoint` does not answer; None if it gives any answer."""
    import httpx
    from huggingface_hub import get_session

    found: list[str | None] = []

    def ask() -> None:
        try:
            response = get_session().head(endpoint, timeout=seconds)
            found.append(f"status {response.status_code}" if response.status_code >= 500 else None)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            found.append(first_line(error))

    # In a thread, because the look-up of the host's name may take longer than the timeout of the request.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"nothing came within {seconds:g} seconds"


def missing_model(name: str) -> str:
    """The reason why the model `name` cannot be had, and the nearest name that can, as the end of a sentence."""
    is_there, why = reached()
    there = f"the hub ({_endpoint()}) has no such model, or none that it shows to you" if is_there else why
    return f"there is no such folder, and {there}{nearest_model(name)}"


def nearest_model(name: str) -> str:
    """The hint `; did you mean X?` for a shipped model, a folder or a model of the cache; an empty text if none is near."""
    return _hint(name, [*SHIPPED, *_cached("models")], [path for path in _siblings(name) if path.is_dir()])


def nearest_source(name: str) -> str:
    """The hint for a data set: `generated`, one of the cache, or a file or folder."""
    return _hint(name, ["generated", *_cached("datasets")], _siblings(name))


def nearest_path(name: str) -> str:
    """The hint for a file or folder."""
    return _hint(name, [], _siblings(name))


def _hint(name: str, names: Iterable[str], paths: Iterable[Path]) -> str:
    rated = [(_likeness(name, known), known) for known in names]
    # Only the last parts are compared: the folder is the same and would make any two paths alike.
    rated += [(_likeness(Path(name).name, path.name), str(path)) for path in paths]
    best = max(rated, default=(0.0, ""))
    return f"; did you mean {best[1]}?" if best[0] >= NEAR else ""


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()


def _siblings(name: str) -> list[Path]:
    """Files and folders in the folder that `name` would be in."""
    try:
        return [path for path in Path(name).expanduser().parent.iterdir() if not path.name.startswith(".")]
    except (OSError, RuntimeError):
        return []


def _cached(kind: str) -> list[str]:
    """Names in the cache, whose folders are called `models--owner--name`."""
    from huggingface_hub import constants

    found = Path(constants.HF_HUB_CACHE).glob(f"{kind}--*")
    return [path.name.removeprefix(f"{kind}--").replace("--", "/") for path in found]


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT
