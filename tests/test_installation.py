"""The wheel, installed where no source tree is: what it carries, and the demo in an empty folder, shortened."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
SMALL = [
    "trainer.per_device_train_batch_size=16",
    "trainer.gradient_accumulation_steps=2",
    "trainer.num_generations=8",
    "trainer.max_completion_length=48",
    "trainer.save_steps=1",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The source tree as git has it: a build writes into the folder it builds."""
    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the source tree is no git repository")
    for name in filter(None, listed.stdout.split("\0")):
        if (REPO / name).is_file() and (name.startswith(("src/", "recipes/")) or "/" not in name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((REPO / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory):
    """Runs a command of an environment that has the wheel; all other packages are those of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)], check=True
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [*PIP, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], env=environment, check=True
    )
    # A path in a .pth file brings its packages, but not its own .pth files: the editable installation of the source tree stays out.
    (site / "packages.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")

    def run(*words: str, cwd: Path) -> str:
        command = [str(python), "-P", *words] if words[0] == "-c" else [str(python.with_name("tinyzero")), *words]
        ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    run.wheel = wheel
    return run


def test_the_wheel_and_the_source_distribution_carry_every_recipe_and_every_other_file_of_the_package(
    installed, source
):
    recipes = {path.relative_to(source).as_posix() for path in source.glob("recipes/**/*.yaml")}
    files = {path.relative_to(source / "src").as_posix() for path in (source / "src").rglob("*") if path.is_file()}
    files = {name for name in files if name.startswith("tinyzero_trl/") and "__pycache__" not in name}
    names = {name for name in zipfile.ZipFile(installed.wheel).namelist() if name.startswith("tinyzero_trl/")}
    assert names == files | {f"tinyzero_trl/{name}" for name in (*recipes, "constraints.txt")}
    code = "import setuptools.build_meta as build; build.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, check=True)
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    assert packed >= {f"src/{name}" for name in files} | recipes | {"constraints.txt", "setup.py"}


def test_an_installed_package_finds_its_recipes_and_its_constraints(installed, tmp_path):
    code = "from tinyzero_trl import Task, installation; from tinyzero_trl.config import list_recipes; from tinyzero_trl.runs import record"
    said = installed("-c", f"{code}; print(installation.ROOT, len(list_recipes()), record._git())", cwd=tmp_path)
    count = len(list(REPO.glob("recipes/*/*.yaml"))) - len(list(REPO.glob("recipes/accelerate_configs/*.yaml")))
    assert re.fullmatch(
        rf"/.*/site-packages/tinyzero_trl {count} {{'git_commit': None, 'git_dirty': None}}", said.strip()
    )
    assert "+countdown=grpo-tiny" in installed("recipes", cwd=tmp_path)
    # What the wheel's metadata asks for and its constraints pin are what is installed here.
    rows = json.loads(installed("doctor", "--json", "--no-imports", cwd=tmp_path))["rows"]
    assert not [
        row for row in rows if row["subject"] in ("trl", "transformers", "accelerate") and row["status"] != "ok"
    ]


def test_the_demo_evaluates_trains_evaluates_and_ends_with_the_place_of_its_report(installed, tmp_path):
    said = installed("demo", "--steps", "2", "--problems", "32", *SMALL, cwd=tmp_path)
    (folder,) = (tmp_path / "outputs" / "countdown").glob("grpo-tiny-*")
    page = Path(said.strip().splitlines()[-1].removeprefix("The report: "))
    assert page == folder / "report.html"
    assert page.is_file()
    prompts = set()
    for name in ("base", "final"):
        summary = json.loads((folder / "evaluation" / name / "summary.json").read_text())
        assert (summary["name"], summary["num_problems"]) == (name, 32)
        prompts.add(summary["prompts_sha256"])
    assert len(prompts) == 1, "base and trained model must answer the same problems"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) >= 2
    assert yaml.safe_load((folder / "run.yaml").read_text())["provenance"]["git_commit"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}
    assert not list(folder.parent.glob(".demo-*")), "nothing is left lying beside the run folder"
