"""Mathematics problems of several sources, in the shares that weights say."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tinyzero_trl.task import Row
from tinyzero_trl.tasks.math.data import key_of

if TYPE_CHECKING:
    from datasets import Dataset

MIXTURE = "mixture"
"""The source that stands for several others with weights."""
_OF_THE_WHOLE = {"split", "split_rule", "num_rows", "seed", "mixture"}
"""Arguments of `load` that no entry has for itself."""


def load_mixture(
    entries: Any, *, load: Callable[..., Dataset], split: str, split_rule: str, num_rows: int | None, seed: int
) -> Dataset:
    """Rows of several sources in the shares their weights say, shuffled; a problem of two sources counts for the first.

    entries: a list of {"source", "weight", and keyword arguments of `load`}. num_rows: None takes as many as the shares
    allow. Raises: ValueError.
    """
    from datasets import Dataset

    if (
        not isinstance(entries, (list, tuple))
        or not entries
        or not all(isinstance(entry, Mapping) for entry in entries)
    ):
        raise ValueError("mixture must be a list of {source: ..., weight: ...}")
    seen: set[str] = set()
    parts: list[tuple[Fraction, list[Row]]] = []
    for entry in entries:
        options = {key: value for key, value in entry.items() if key != "weight"}
        weight = entry.get("weight")
        if "source" not in options or options["source"] == MIXTURE:
            raise ValueError(f"an entry of mixture has source, weight and what load takes besides, got {dict(entry)}")
        takes = set(inspect.signature(load).parameters) - _OF_THE_WHOLE
        if unknown := options.keys() - takes:
            raise ValueError(
                f"mixture: {options['source']} takes no {', '.join(sorted(unknown))}; it takes {', '.join(sorted(takes))}"
            )
        if type(weight) not in (int, float) or not weight > 0:
            raise ValueError(f"mixture: {options['source']} needs a weight above 0, got {weight!r}")
        rows = []
        for row in load(split=split, split_rule=split_rule, seed=seed, **options).to_list():
            if (key := key_of(row)) not in seen:
                seen.add(key)
                rows.append(row)
        parts.append((Fraction(str(weight)), rows))
    whole = sum(weight for weight, _ in parts)
    possible = min(int(len(rows) * whole / weight) for weight, rows in parts)
    wanted = possible if num_rows is None else num_rows
    if wanted > possible or wanted < 1:
        raise ValueError(
            f"{wanted} {split} rows were asked of a mixture whose sources and weights give 1 to {possible}"
        )
    rng = random.Random(f"tinyzero mixture {seed}")
    mixed = [row for weight, rows in parts for row in rng.sample(rows, int(wanted * weight / whole))]
    taken = {key_of(row) for row in mixed}
    rest = [row for _, rows in parts for row in rows if key_of(row) not in taken]
    mixed += rest[: wanted - len(mixed)]
    rng.shuffle(mixed)
    return Dataset.from_list(mixed)
