"""Rows of problems: read, checked, split, compared.

    hub | file | folder | generator -> sources -> rows (checked, split by rule, without duplicates) -> a task's data set

`overlap` looks for evaluation problems among training problems. `preparation` is the verb `tinyzero prepare`; it stands above
tasks and models, so this door does not open it.
"""

from tinyzero_trl.data.rows import CARD, Problems, load_rows, split_of_key
from tinyzero_trl.data.sources import SAID, SUFFIXES, kind_of, read_source

__all__ = [
    "CARD",
    "SAID",
    "SUFFIXES",
    "Problems",
    "kind_of",
    "load_rows",
    "read_source",
    "split_of_key",
]
