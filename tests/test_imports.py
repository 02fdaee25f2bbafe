"""Whom each module may import: the floors of the house, walked over every file of the package."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinyzero_trl

PACKAGE = Path(tinyzero_trl.__file__).parent
GROUND = (
    *("answer", "expression", "failures", "hub", "installation", "intervals"),
    *("redaction", "rollout", "seeding", "task", "threads"),
)
"""Files that every room may import: the standard library and little more."""
FLOORS = (
    GROUND,
    ("storage",),
    ("data", "rewards"),
    ("tasks",),
    ("algorithms", "models"),
    ("config",),
    ("doctor", "estimate", "generation", "pretraining", "runs", "trainer"),
    ("evaluation",),
    ("report",),
    ("launch",),
    ("__init__", "api", "cli", "demo", "grpo", "sft"),
)
"""Rooms from the ground up. A module imports from its own room and from lower floors; on the ground floor, from the ground floor."""
NEIGHBOURS = {("__init__", "api"), ("estimate", "doctor"), ("cli", "demo")}
"""Arrows (from, to) within a floor."""
VERBS = {"data.preparation", "generation.serving"}
"""Files that are a verb of the command line: they may import from every room below it, and the command line alone imports them."""
LIGHT = {*GROUND, "storage", "data", "rewards", "tasks", "report"}
"""Rooms and files that are imported without anything that takes seconds."""
HEAVY = {"torch", "trl", "hydra", "vllm", "transformers", "accelerate", "peft", "deepspeed"}


def imported_names(path: Path) -> Iterator[str]:
    """Every module that a file imports, absolute, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                # `from tinyzero_trl.tasks import countdown` imports a module; `import TASKS` only a name.
                place = PACKAGE.parent / name.replace(".", "/")
                is_module = place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
                yield name if is_module else str(node.module)


def names_of_modules() -> dict[str, Path]:
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        files[".".join(part for part in parts if part != "__init__") or "__init__"] = path
    return files


FILES = names_of_modules()
OURS = {
    module: {name.removeprefix("tinyzero_trl.") for name in imported_names(path) if name.startswith("tinyzero_trl.")}
    - {module}
    for module, path in FILES.items()
}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", OURS)
def test_arrows_point_down(module):
    floor = len(FLOORS) if module in VERBS else FLOOR[room(module)]
    for imported in OURS[module]:
        assert imported not in VERBS or module == "cli", f"{module} imports the verb {imported}"
        is_inside = room(imported) == room(module) or (module in GROUND and imported in GROUND)
        is_allowed = is_inside or (room(module), room(imported)) in NEIGHBOURS
        assert is_allowed or FLOOR[room(imported)] < floor, f"{module} imports {imported}"


@pytest.mark.parametrize("module", [module for module in OURS if module.count(".") and room(module) == "tasks"])
def test_no_task_imports_another(module):
    imported = {name.split(".")[1] for name in OURS[module] if name.startswith("tasks.")}
    assert imported <= {module.split(".")[1]}


@pytest.mark.parametrize("module", [module for module in OURS if room(module) in ("intervals", "storage", "report")])
def test_what_reads_files_or_numbers_knows_no_task(module):
    assert not {"tasks", "rewards", "data"} & {room(imported) for imported in OURS[module]}


def test_a_room_is_entered_by_its_door():
    """By `from tinyzero_trl.room import name`, where name is handed out by the door or is a module: never from a file behind it."""
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tinyzero_trl."):
                source = str(node.module).removeprefix("tinyzero_trl.")
                is_behind = source.count(".") and source in FILES and FILES[source].name != "__init__.py"
                is_closed = source in CLOSED or room(source) in LAZY
                assert not is_behind or room(source) == room(module) or is_closed, (
                    f"{module}: line {node.lineno} imports from {source}, behind a door"
                )


CLOSED = {"rewards.pool", "rewards.worker_process", "tasks.reward_worker", "data.preparation"}
"""Files that their door does not open, because they load a library or are a process of their own."""
LAZY = {"algorithms", "trainer", "tasks"}
"""Rooms whose files are imported one by one: each loads torch or TRL, or is one task."""


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


def test_no_file_beside_grpo_is_named_like_a_library():
    # `accelerate launch src/tinyzero_trl/grpo.py` puts that folder first on sys.path.
    libraries = sys.stdlib_module_names | HEAVY | {"datasets", "numpy", "scipy", "rich", "plotly", "jinja2", "pyarrow"}
    beside = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not beside & libraries
    for entry_point in ("grpo", "sft"):
        text = FILES[entry_point].read_text(encoding="utf-8")
        assert "sys.path[0] = " in text.split("from tinyzero_trl")[0], (
            f"{entry_point} must take its folder off the path"
        )


def first_to_load(libraries: set[str], rooms: tuple[str, ...]) -> list[str]:
    """Each room, imported after those before it in one process, that loads one of the libraries first, and that library."""
    code = f"""
        import importlib, sys
        for room in {rooms}:
            importlib.import_module("tinyzero_trl" + room)
            for library in {libraries} & sys.modules.keys():
                print("tinyzero_trl" + room, library)
                sys.exit()
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


def test_importing_a_light_room_loads_nothing_heavy():
    rooms = ("", ".api", ".storage", ".task", ".seeding", ".data", ".rewards", ".tasks")
    assert not first_to_load(HEAVY | {"datasets", "numpy", "scipy", "pyarrow", "sympy", "rich", "pebble"}, rooms)


def test_importing_a_room_that_a_verb_reads_first_loads_neither_torch_nor_trl():
    rooms = (".models", ".config", ".runs", ".estimate", ".evaluation", ".report", ".cli")
    assert not first_to_load(HEAVY | {"datasets", "sympy"}, rooms)


def test_the_process_that_ends_a_server_loads_the_standard_library_alone():
    code = "import sys, tinyzero_trl.generation.supervisor; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not (HEAVY | {"numpy", "psutil", "aiohttp", "omegaconf", "rich"}) & set(run.stdout.split())


def test_the_door_of_generation_hands_out_its_names():
    from tinyzero_trl import generation

    assert generation.sample.__module__ == "tinyzero_trl.generation.sampler"
    assert {name: hasattr(generation, name) for name in generation.__all__} == dict.fromkeys(generation.__all__, True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        generation.nothing  # noqa: B018
