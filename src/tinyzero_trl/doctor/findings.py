"""What the doctor says about one thing: what is there, what was wanted, and the command that mends it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "note", "problem"]
"""`note`: works, and is not as it was tested or not as fast; `problem`: breaks a run."""


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    subject: str
    """A package, a device, a limit."""
    found: str
    """What is there, with its unit."""
    status: Status = "ok"
    wanted: str = ""
    """What would be right, or why this is not; empty where all is well."""
    command: str = ""
    """What to type so that it is right; a problem always has one."""

    def __post_init__(self) -> None:
        assert self.status == "ok" or self.wanted, f"{self.subject}: say what is wrong"
        assert self.status != "problem" or self.command, f"{self.subject}: say what mends it"

    def plain(self) -> dict[str, str]:
        """Its fields, for `--json`."""
        return asdict(self)
