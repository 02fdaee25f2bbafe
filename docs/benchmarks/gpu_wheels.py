"""Wheels of what gpu_proof.py needs beside torch, transformers and accelerate, small enough to carry: `make gpu-wheels`.

One folder for each Python, such as build/gpu-wheels/py3.12, which a host without network installs from (README.md):

    pip install --no-index --no-deps --find-links build/gpu-wheels/py3.12 -r build/gpu-wheels/py3.12/requirements.txt

The wheels are packed anew with LZMA, which pip reads, and the largest without what the proof never imports (tests, headers, services).
The files that are left are unchanged.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
LIMIT = 64 * 2**20
"""Bytes of all wheels of one Python."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64", "any")
NAMES = (
    *("trl", "peft", "datasets", "pyarrow", "pandas", "python-dateutil", "six", "dill", "multiprocess", "xxhash"),
    *("hydra-core", "omegaconf", "scipy", "pebble", "math-verify", "latex2sympy2_extended", "plotly", "narwhals"),
    *("rich", "markdown-it-py", "mdurl", "pygments", "pytest", "pluggy", "iniconfig"),
)
"""Versions are those of constraints.txt; a name it does not have is not needed."""
SOURCES = ("antlr4-python3-runtime",)
"""Packages without a wheel on the index: built here, for every Python alike."""
LEFT_OUT = {
    "pyarrow": (
        *("pyarrow/tests/*", "pyarrow/include/*", "pyarrow/includes/*", "pyarrow/src/*", "*.pyx", "*.pxi", "*.pxd"),
        *("pyarrow/libarrow_flight.*", "pyarrow/libarrow_s3.*", "*parquet_encryption.*"),
        *("pyarrow/libarrow_python_flight.*", "pyarrow/_flight.*", "pyarrow/_s3fs.*", "pyarrow/_substrait.*"),
        *("pyarrow/_pyarrow_cpp_tests.*", "pyarrow/libarrow_python.so", "pyarrow/libarrow_python.so.*.*"),
    ),
    "scipy": (
        *("*/tests/*", "scipy/io/*", "scipy/signal/*", "scipy/cluster/*", "scipy/fftpack/*", "scipy/odr/*"),
        *("scipy/datasets/*", "scipy/misc/*", "scipy/stats/_unuran/unuran_wrapper.*"),
    ),
    "pandas": ("pandas/tests/*",),
    # The checkout's own code runs: of the package only what pip knows of it is asked for.
    "tinyzero-trl": ("tinyzero_trl/*",),
    "plotly": ("plotly/labextension/*", "*.data/*", "plotly/package_data/widgetbundle.js"),
}
"""By package, patterns of the files that are not carried."""


def main() -> int:
    """Make the folders; exit code 1 where one is too large to carry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = "{}.{}".format(*sys.version_info)
    parser.add_argument(
        "--python", nargs="+", default=[here], help="versions, such as 3.11 3.12 (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=REPO / "build" / "gpu-wheels")
    arguments = parser.parse_args()
    sizes = {}
    for python in arguments.python:
        folder = arguments.out / f"py{python}"
        sizes[folder] = make(folder, python)
        print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels, {sizes[folder] / 2**20:.1f} MiB", flush=True)
    too_large = [str(folder) for folder, size in sizes.items() if size > LIMIT]
    if too_large:
        print(f"larger than {LIMIT // 2**20} MiB: {', '.join(too_large)}", file=sys.stderr)
    return 1 if too_large else 0


def make(folder: Path, python: str) -> int:
    """Bytes of the wheels for one Python, downloaded, built and packed into `folder`, which appears whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as name:
        part = Path(name) / "wheels"
        pip = [sys.executable, "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check"]
        where = [*("--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python)]
        where += [word for platform in PLATFORMS for word in ("--platform", platform)]
        pinned = versions(REPO / "constraints.txt")
        wanted = [f"{key}=={pinned[key]}" for key in map(normal, NAMES) if key in pinned]
        subprocess.run([*pip, "download", *where, "--dest", str(part), *wanted], check=True)
        sources = [f"{name}=={pinned[normal(name)]}" for name in SOURCES]
        shutil.rmtree(REPO / "build" / "lib", ignore_errors=True)  # setuptools never takes away what is there
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(part), *sources, str(REPO)], check=True)
        for wheel in sorted(part.glob("*.whl")):
            pack_anew(wheel, LEFT_OUT.get(normal(wheel.name.split("-")[0]), ()))
        listed = [f"{normal(wheel.name.split('-')[0])}=={wheel.name.split('-')[1]}" for wheel in part.glob("*.whl")]
        (part / "requirements.txt").write_text("\n".join(sorted(listed)) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    return sum(file.stat().st_size for file in folder.iterdir())


def normal(name: str) -> str:
    """The name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(constraints: Path) -> dict[str, str]:
    """Version by name, of the lines `name==version`."""
    lines = constraints.read_text(encoding="utf-8").splitlines()
    found = (re.match(r"([\w.-]+)==([^\s;]+)", line) for line in lines)
    return {normal(match[1]): match[2] for match in found if match}


def pack_anew(wheel: Path, left_out: tuple[str, ...]) -> None:
    """Write `wheel` again without the files of the patterns, with LZMA and a RECORD of what is left."""
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(part, "w", zipfile.ZIP_LZMA) as new:
        record, lines = "", []
        for info in old.infolist():
            if info.is_dir() or any(fnmatch.fnmatch(info.filename, pattern) for pattern in left_out):
                continue
            if info.filename.endswith(".dist-info/RECORD"):
                record = info.filename
                continue
            content = old.read(info)
            kept = zipfile.ZipInfo(info.filename, info.date_time)
            kept.external_attr, kept.compress_type = info.external_attr, zipfile.ZIP_LZMA
            new.writestr(kept, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            path = f'"{info.filename}"' if "," in info.filename else info.filename
            lines.append(f"{path},sha256={digest},{len(content)}")
        new.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    os.replace(part, wheel)


if __name__ == "__main__":
    sys.exit(main())
