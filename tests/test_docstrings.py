"""Docstrings are sentences that stand alone, and their examples hold."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

import tinyzero_trl

PACKAGE = Path(tinyzero_trl.__file__).parent
REPO = Path(__file__).resolve().parents[1]
LEANS = re.compile(r"\s*(Of|For|After|What|Whether|How)\b")
"""First words of a docstring that is no sentence, or leans on the one above it."""
SOURCES = [
    path for folder in (PACKAGE, REPO / "tests", REPO / "docs", REPO / "scripts") for path in folder.rglob("*.py")
]
WITH_EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


def test_no_docstring_leans_on_something_before_it():
    leaning = [
        f"{path}:{node.lineno}: {node.value.value.splitlines()[0]}"
        for path in SOURCES
        for parent in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for node in (parent.body if isinstance(getattr(parent, "body", None), list) else [])
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if LEANS.match(node.value.value)
    ]
    assert leaning == []


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_examples_of_a_module_hold(path):
    name = ".".join(("tinyzero_trl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    assert doctest.testmod(importlib.import_module(name)).failed == 0
