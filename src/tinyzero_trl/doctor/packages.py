"""What is installed, read from the metadata folders beside the packages, so that no package has to work."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

CUDA_LINE = re.compile(r"^cuda\b[^=\n]*=\s*(?:None|['\"](?P<version>[\d.]+)['\"])", re.MULTILINE)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Installed:
    """One distribution."""

    name: str
    """Normalised: lower case, runs of `-_.` as one `-`."""
    version: str
    """Empty where the metadata does not say."""
    requires: tuple[str, ...]
    """Lines of Requires-Dist, extras included."""
    folder: Path
    """Its metadata folder, whose parent holds the package."""
    others: tuple[str, ...] = ()
    """Versions of other metadata folders of the same name beside it: what an interrupted pip leaves."""

    @property
    def cuda(self) -> str | None:
        """CUDA version a build of torch or torchvision was made for, `cpu`, or None where it does not say."""
        file = self.folder.parent / self.name / "version.py"
        if not file.is_file():
            return None
        line = CUDA_LINE.search(file.read_text(encoding="utf-8", errors="replace"))
        return None if line is None else line.group("version") or "cpu"


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(path: Sequence[str] | None = None) -> Mapping[str, Installed]:
    """Every distribution by normalised name, as Python would import it: the first folder of `path` (sys.path) that has it."""
    found: dict[str, Installed] = {}
    for place in sys.path if path is None else path:
        here: dict[str, list[Installed]] = {}
        if not Path(place or ".").is_dir():
            continue
        for folder in sorted(Path(place or ".").glob("*.dist-info")):
            one = _read(folder)
            here.setdefault(one.name, []).append(one)
        for name, several in here.items():
            first, *rest = sorted(several, key=lambda one: one.version == "")
            found.setdefault(name, Installed(**{**vars(first), "others": tuple(one.version or "?" for one in rest)}))
    return found


def _read(folder: Path) -> Installed:
    stem_name, _, _ = folder.name.removesuffix(".dist-info").partition("-")
    try:
        headers = HeaderParser().parsestr((folder / "METADATA").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return Installed(normalised(stem_name), "", (), folder)
    return Installed(
        name=normalised(headers["Name"] or stem_name),
        version=str(headers["Version"] or "") if headers["Name"] else "",
        requires=tuple(headers.get_all("Requires-Dist") or ()),
        folder=folder,
    )


@dataclass(frozen=True)
class Wanted:
    """What this package asks for."""

    python: str
    """As `Requires-Python` has it."""
    always: tuple[str, ...]
    """Requirements, in the order of pyproject.toml."""
    extras: Mapping[str, tuple[str, ...]]
    """Requirements by extra, our own name left out."""
    pins: Mapping[str, str]
    """Version by normalised name that the tests ran with; empty where there is no constraints.txt."""
    constraints: Path | None


def wanted(root: Path, found: Mapping[str, Installed]) -> Wanted:
    """The requirements of pyproject.toml in `root`, or, in a package that pip installed, those of its metadata.

    pyproject.toml goes first: the metadata of an editable install stays as it was when the tree moves on.
    """
    import tomllib

    constraints = root / "constraints.txt"
    pins = _pins(constraints.read_text(encoding="utf-8")) if constraints.is_file() else {}
    file = root / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extras = {
            extra: tuple(item for item in items if name_of(item) != normalised(project["name"]))
            for extra, items in project.get("optional-dependencies", {}).items()
        }
        always = tuple(project["dependencies"])
        return Wanted(project["requires-python"], always, extras, pins, constraints if pins else None)
    ours = found.get("tinyzero-trl")
    listed = ours.requires if ours else ()
    by_extra: dict[str, tuple[str, ...]] = {}
    for item in listed:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", item)
        if extra:
            by_extra[extra.group(1)] = (*by_extra.get(extra.group(1), ()), item.partition(";")[0].strip())
    plain = tuple(item for item in listed if "extra ==" not in item)
    return Wanted(">=3.11", plain, by_extra, pins, constraints if pins else None)


def name_of(requirement: str) -> str:
    """The normalised name at the head of a requirement."""
    match = NAME.match(requirement.strip())
    return normalised(match.group()) if match else ""


def _pins(text: str) -> dict[str, str]:
    pairs = (line.strip().partition("==") for line in text.splitlines() if "==" in line and not line.startswith("#"))
    return {normalised(name): version.strip() for name, _, version in pairs}
