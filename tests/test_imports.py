"""Whom each module may import: the arrows of docs and CONTRIBUTING, walked over every file of the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tinyzero_trl

PACKAGE = Path(tinyzero_trl.__file__).parent

LAYERS = {
    "answer": 0,
    "expression": 0,
    "worker_process": 0,
    "hub": 0,
    "row_files": 1,
    "earned": 0,
    "shaping": 0,
    "task": 1,
    "rewards": 2,
    "rows": 2,
    "tasks.": 3,
    "tasks": 4,
}
"""Below everything else; `tasks.` is any one task file. Modules not named here are the middle: config, evaluation."""
MIDDLE = 5
ENTRY_POINTS = {"grpo", "sft", "cli", "demo"}
GENERATES = {"answering", "policy", "generation"}
"""Modules beside the entry points that may import `generation`: `answering` and `policy` run models for them."""
NO_TASKS = {"statistics", "report", "manifest", "storage", "trust", "failures", "redaction"}
"""Modules that read files or numbers and know no task."""
LIGHT = {*LAYERS, "statistics", "report"}
"""Modules that must not import what takes seconds."""
HEAVY = {"torch", "trl", "hydra", "vllm", "transformers", "accelerate", "peft", "deepspeed"}


def imports_by_module() -> dict[str, set[str]]:
    """Every module of the package (`tasks.countdown`) with all it imports, absolute, also inside functions."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__") or "__init__"
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names.add(node.module)
                # `from tinyzero_trl.tasks import countdown` imports a module; `import TASKS` only a name.
                names |= {
                    f"{node.module}.{alias.name}"
                    for alias in node.names
                    if (PACKAGE.parent / f"{node.module}.{alias.name}".replace(".", "/")).with_suffix(".py").is_file()
                    or (PACKAGE.parent / f"{node.module}.{alias.name}".replace(".", "/") / "__init__.py").is_file()
                }
        found[name] = names
    return found


IMPORTS = imports_by_module()
OURS = {
    module: {name.removeprefix("tinyzero_trl.") for name in names if name.startswith("tinyzero_trl.")} - {module}
    for module, names in IMPORTS.items()
}


def layer(module: str) -> int:
    if module.startswith("tasks."):
        return LAYERS["tasks."]
    if module in ENTRY_POINTS:
        return MIDDLE + 1
    return LAYERS.get(module, MIDDLE)


def room(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", OURS)
def test_arrows_point_down(module):
    for imported in OURS[module]:
        if layer(module) < MIDDLE and not is_own_sibling(module, imported):
            assert layer(imported) < layer(module), f"{module} imports {imported}"
        if layer(module) == MIDDLE:
            assert layer(imported) <= MIDDLE, f"{module} imports the entry point {imported}"


def is_own_sibling(module: str, imported: str) -> bool:
    """The files of one task, which share its name as their first word, may read each other; two tasks never do."""
    return module.startswith("tasks.") and module.split("_")[0] == imported.split("_")[0]


@pytest.mark.parametrize("module", OURS)
def test_only_entry_points_import_the_trainer_and_generation(module):
    if module in ENTRY_POINTS:
        return
    rooms = {room(imported) for imported in OURS[module]}
    assert "trainer" not in rooms or room(module) == "trainer"
    assert "generation" not in rooms or room(module) in GENERATES


@pytest.mark.parametrize("module", sorted(NO_TASKS & OURS.keys()))
def test_what_reads_files_or_numbers_knows_no_task(module):
    rooms = {room(imported) for imported in OURS[module]}
    assert rooms <= NO_TASKS | {"report"} | {name for name in rooms if name.startswith("report")}


@pytest.mark.parametrize("module", [module for module in IMPORTS if module in LIGHT or module.startswith("tasks.")])
def test_light_modules_name_no_heavy_library(module):
    assert not HEAVY & {name.split(".")[0] for name in IMPORTS[module]}


def test_no_two_modules_import_each_other():
    above: list[str] = []
    done: set[str] = set()

    def walk(module: str) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module in done or module not in OURS:
            return
        above.append(module)
        for imported in sorted(OURS[module]):
            # A module inside a package names its siblings through the package; that is no import of the package's own.
            if imported != module and not module.startswith(imported + "."):
                walk(imported)
        above.pop()
        done.add(module)

    for module in OURS:
        walk(module)


def test_no_module_is_called_like_a_drawer():
    drawers = {"utils", "helpers", "common", "manager", "base", "misc"}
    assert not drawers & {part for module in OURS for part in module.split(".")}


def test_a_file_beside_grpo_named_like_a_library_is_kept_off_the_path():
    # `accelerate launch src/tinyzero_trl/grpo.py` puts that folder first on sys.path.
    libraries = sys.stdlib_module_names | HEAVY | {"datasets", "numpy", "scipy", "rich", "plotly", "jinja2", "pyarrow"}
    beside = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert beside & libraries <= {"statistics"}
    for entry_point in ("grpo", "sft"):
        path = PACKAGE / f"{entry_point}.py"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "sys.path[0] = " in text.split("from tinyzero_trl")[0], (
                f"{path} must first take its folder off the path"
            )


def test_importing_the_tasks_loads_nothing_heavy():
    code = "import sys, tinyzero_trl.tasks; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not (HEAVY | {"datasets", "numpy", "scipy", "pyarrow", "sympy", "rich"}) & set(run.stdout.split())
