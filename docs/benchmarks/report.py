"""The comparison of the training phase in words and tables."""

from __future__ import annotations

from typing import Any

from forced import DISTRIBUTIONS
from rich.console import Console

MIB = 2**20
HEAD = (
    "lengths: median / sigma / cap (scale)",
    "case",
    "constant groups",
    "seconds stock / ours",
    "ratio",
    "ratio of CPU time",
    "tokens stock / ours",
    "ratio",
    "padding stock / ours",
    "peak MiB stock / ours",
    "ratio",
    "largest difference (of an update of)",
)


def cells(result: dict[str, Any]) -> list[str]:
    """One row of the table, by HEAD."""
    lengths = DISTRIBUTIONS[result["distribution"]]
    stock, ours, ratio = result["stock"], result["ours"], result["ratio"]
    return [
        f"{lengths.median} / {lengths.sigma} / {lengths.cap} (x {result['scale']:g})",
        result["variant"],
        f"{result['constant']:.0%}",
        f"{stock['seconds']:.2f} / {ours['seconds']:.2f}",
        f"**{ratio['seconds']:.2f}**",
        f"{ratio['cpu']:.2f}",
        f"{stock['tokens']:,} / {ours['tokens']:,}",
        f"{ratio['tokens']:.2f}",
        f"{padding(stock):.0%} / {padding(ours):.0%}",
        f"{stock['peak'] / MIB:.0f} / {ours['peak'] / MIB:.0f}",
        f"{ratio['peak']:.2f}",
        f"{result['difference']:.1e} ({result['update']:.1e})",
    ]


def padding(run: dict[str, Any]) -> float:
    """Share of the computed tokens that are padding."""
    return 1 - run["real_tokens"] / run["tokens"]


def show(result: dict[str, Any]) -> None:
    """One case as it is done."""
    line = "  ".join(cell.replace("**", "") for cell in cells(result))
    Console(highlight=False, soft_wrap=True).print(line)


def markdown(header: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """The table for README.md."""
    table = [HEAD, ["---"] * len(HEAD), *(cells(result) for result in results)]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in table)
    shape = ", ".join(f"{name} {value}" for name, value in header["shape"].items())
    return (
        f"\n`{header['command']}`: {header['machine']}; loss {header['loss']}, float32, SGD; Llama of {shape}; "
        f"{header['seconds']:.0f} s in all.\n\n{lines}\n"
    )
