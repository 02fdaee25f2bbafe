"""Reasons why a run ends before it is done; each has an exit code that schedulers and scripts can act on.

0 done, 2 config, 3 reward, 4 numeric, 5 out of memory, 6 locked, 7 server, 8 disk, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tinyzero_trl.redaction import hide_in_tracebacks, secrets_in_environment, secrets_in_words, without_secrets


class Failure(RuntimeError):
    """An error that ends a run, with a message for the person and `exit_code` for the script."""

    exit_code = 1


class ConfigError(Failure, ValueError):
    """A mistake in a recipe, a command line, a path or the data, in one line that says what to change."""

    exit_code = 2


class RewardFailure(Failure):
    """Rewards that teach nothing: none is a number, or no completion earns any."""

    exit_code = 3


class VerifierFailure(Failure):
    """A verifier that gave up on too many responses for the figures to describe the model."""

    exit_code = 3


class NumericFailure(Failure):
    """Gradients or weights that are not finite."""

    exit_code = 4


class RunLocked(Failure):
    """A run folder in which another process is at work."""

    exit_code = 6


class ServerLost(Failure):
    """A generation server that stopped answering and could not be restarted."""

    exit_code = 7


class DiskFull(Failure):
    """A checkpoint, or the weights for a server, that could not be written whole; the last sealed checkpoint is untouched."""

    exit_code = 8


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_PLACE = {
    errno.EROFS: "it is on a read-only file system; choose another folder",
    errno.EACCES: "this user may not write there; choose another folder, or change its permissions",
    errno.EPERM: "this user may not write there; choose another folder, or change its permissions",
    errno.ENOTDIR: "a part of this path is a file and not a folder; choose another folder",
    errno.ELOOP: "a link of this path leads back to itself; choose another folder",
    errno.ENAMETOOLONG: "this name is too long: 255 bytes between two slashes and 4,096 in all are what a disk takes",
    errno.EEXIST: "a file of this name is where a folder is to be; move it away",
    errno.EISDIR: "it is a folder, and a file is to be written there; move the folder away",
}
"""The reason why nothing can be written at a path, and what to do about it, by the error number of the system."""


def explained(error: OSError) -> Failure | None:
    """The failure to report in place of `error`; None if the error is not about the place to write to."""
    place = str(error.filename or "")
    place = place if len(place) <= 200 else f"{place[:100]}...{place[-60:]}"
    if error.errno in FULL:
        return DiskFull(
            f"the disk is full: {place or 'a file'} could not be written; make room, or write to another disk"
        )
    if error.errno not in NO_PLACE or not place:
        return None
    # A reason that our own code gave says more than that of the system.
    own = error.strerror if error.strerror and error.strerror != os.strerror(error.errno) else None
    verb = "written" if error.errno in (errno.EROFS, errno.EISDIR, errno.EEXIST) else "used"
    return ConfigError(f"{place} cannot be {verb}: {own or NO_PLACE[error.errno]}")


PATIENCE = 5.0
"""Seconds that other processes give rank 0 to clean up and print its message."""
OUT_OF_MEMORY_EXIT = 5
OUT_OF_MEMORY_ADVICE = (
    "out of memory: set trainer.gradient_checkpointing=true or lower batching.max_tokens_per_microbatch, with which the run "
    "can be continued; or, as a new run, lower trainer.per_device_train_batch_size (and raise trainer.gradient_accumulation_steps "
    "by as much where batching.completions_per_step is null) or trainer.max_completion_length"
)


def exit_code_of(program: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """The exit code of `program(words)`; for a Failure its own exit code, after its message was printed to stderr.

    An error that every process finds alike (a mistake in the recipe, Ctrl-C) is printed by the first process alone. An error of one
    process (out of memory, a number that is not finite) is printed by that process.
    """
    hide_in_tracebacks(words)
    is_everyones = False
    try:
        return program(words)
    except Failure as failure:
        message, code = str(failure), failure.exit_code
        is_everyones = isinstance(failure, (ConfigError, RunLocked))
    except OSError as error:
        failure_of_disk = explained(error)
        if failure_of_disk is None:
            raise
        message, code = str(failure_of_disk), failure_of_disk.exit_code
        is_everyones = isinstance(failure_of_disk, ConfigError)
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # importing it here would delay the message on a misspelt recipe by seconds
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        message, code = f"{OUT_OF_MEMORY_ADVICE} ({str(error).splitlines()[0]})", OUT_OF_MEMORY_EXIT
    except KeyboardInterrupt as interrupt:
        # Our signal handler passes the number of the signal; without one it was Ctrl-C.
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        message, code = "stopped at once; the last sealed checkpoint is what there is", 128 + int(number)
        is_everyones = True
    message = without_secrets(message, secrets_in_words(words) | secrets_in_environment())
    rank, size = os.environ.get("RANK") or "0", os.environ.get("WORLD_SIZE") or "1"
    # If the variables are nonsense, which may be what the message is about, every process prints it.
    is_one_of_many = rank.isdigit() and size.isdigit() and int(rank) < int(size) != 1
    if rank == "0" or not (is_everyones and is_one_of_many):
        print(f"error{'' if rank == '0' else f' (process {rank})'}: {message}", file=sys.stderr, flush=True)
    if is_one_of_many:
        if rank != "0":
            time.sleep(
                PATIENCE
            )  # the launcher ends rank 0 as soon as this process is gone, and rank 0 has yet to print its message
        # The other processes may wait for ever for this one in a collective; the launcher ends them once it is gone.
        sys.stdout.flush()
        os._exit(code)
    return code


NEAR = 0.8
"""Similarity, between 0 and 1, from which a word counts as a misspelling of another."""


def near(word: str, known: Iterable[str]) -> str | None:
    """The one known word that `word` misspells, or that has all of its parts; None if there is no such word or more than one.

    A wrong hint costs more than none. Numbers and single letters must agree: zero9 is no misspelling of zero2, nor top_a of top_k.

    >>> near("lerning_rate", ["learning_rate", "seed"]), near("num_epochs", ["num_train_epochs", "seed"])
    ('learning_rate', 'num_train_epochs')
    >>> near("early_stopping_patience", ["learning_rate", "seed"]), near("top_a", ["top_k", "top_p"])
    (None, None)
    """
    alike = {one: difflib.SequenceMatcher(None, word.lower(), one.lower()).ratio() for one in known}
    alike = {one: ratio for one, ratio in alike.items() if ratio >= NEAR and _marks(one) == _marks(word)}
    best = [one for one, ratio in alike.items() if ratio == max(alike.values())]
    if not alike:
        parts = set(re.split(r"[_.-]", word.lower()))
        best = [one for one in known if len(parts) > 1 and parts <= set(re.split(r"[_.-]", one.lower()))]
    return best[0] if len(best) == 1 else None


def nearest(word: str, known: Iterable[str]) -> str:
    """The text `; did you mean X?` if one known word is near, otherwise an empty one."""
    found = near(word, known)
    return f"; did you mean {found}?" if found else ""


def _marks(word: str) -> list[str]:
    """The numbers and single letters of a word."""
    parts = re.split(r"[_.-]", word.lower())
    return re.findall(r"\d+", word) + [part for part in parts if len(part) == 1]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def kind_of(content: Any) -> str:
    """The type of the content of a file in words: `nothing`, `a list`, `an int`.

    >>> kind_of(None), kind_of({}), kind_of([1]), kind_of(3)
    ('nothing', 'nothing', 'a list', 'an int')
    """
    name = type(content).__name__
    return "nothing" if content is None or content == {} else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
