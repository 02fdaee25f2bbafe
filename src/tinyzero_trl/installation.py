"""The place of the files that come with this package: the source tree it runs from, or the package that pip installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IS_SOURCE_TREE = not (PACKAGE / "recipes").is_dir()
"""A wheel carries recipes/ and constraints.txt inside the package (setup.py); the source tree has them at its top level."""
ROOT = PACKAGE.parents[1] if IS_SOURCE_TREE else PACKAGE
"""The folder with recipes/ and constraints.txt; in a source tree also scripts/, pyproject.toml and the git history."""


def with_extra(name: str) -> str:
    """The words behind `pip install` that add an extra to this installation."""
    return f"-e '.[{name}]'" if IS_SOURCE_TREE else f"'tinyzero-trl[{name}]'"
