"""Rows of problems: read, checked, split by rule, without duplicates.

    hub | file | folder -> `sources` -\
                                       > `rows` (checked, split, distinct) -> a task's data set
    generator of the task ------------/

`overlap` finds evaluation problems among training problems. `preparation` is the verb `tinyzero prepare`: it uses tasks, models and
benchmarks, so only the command line imports it.
"""

from tinyzero_trl.data.rows import CARD, TINYZERO_TEST, Problems, load_rows, split_of_key
from tinyzero_trl.data.sources import READABLE, SUFFIXES, read_source, suffix_of

__all__ = [
    "CARD",
    "READABLE",
    "SUFFIXES",
    "TINYZERO_TEST",
    "Problems",
    "load_rows",
    "read_source",
    "split_of_key",
    "suffix_of",
]
