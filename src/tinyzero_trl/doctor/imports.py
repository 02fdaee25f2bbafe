"""Whether packages can be imported, tried in processes of their own: one may raise, exit, crash or hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

SECONDS_EACH = 120
"""After which an import counts as hung; the first `import vllm` on a cold disk takes half a minute."""

# Each line is flushed at once, so that what a crash cuts off tells which package it was. An alarm nobody handles ends
# the process, also inside C code. os._exit leaves out what a half-imported library would do at the end.
PROGRAM = """
import importlib, json, os, signal, sys
for name in sys.argv[2:]:
    print(json.dumps({"begin": name}), flush=True)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(sys.argv[1]))
    try:
        module = importlib.import_module(name)
        answer = {"name": name, "fault": None}
        if name == "torch":
            answer["num_gpus"] = module.cuda.device_count() if module.cuda.is_available() else 0
    except BaseException as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        answer = {"name": name, "fault": f"{type(error).__name__}: {lines[0]}"}
    print(json.dumps(answer), flush=True)
os._exit(0)
"""


def tried_imports(
    names: Sequence[str], *, path: Sequence[str] | None = None, seconds_each: int = SECONDS_EACH
) -> Mapping[str, dict[str, Any]]:
    """By module name: `fault` (the error's class and first line, or None) and, of torch, `num_gpus` that it sees.

    path: folders to import from before all others. What a process that ends too early leaves is tried in another.
    """
    answers: dict[str, dict[str, Any]] = {}
    left = list(names)
    while left:
        found, begun, ending = _tried(left, path, seconds_each)
        answers |= found
        if begun not in answers:  # the process ended with this one; where it began none, Python itself does not start
            answers[begun or left[0]] = {"name": begun or left[0], "fault": ending}
        left = [name for name in left if name not in answers]
    return answers


def _tried(
    names: Sequence[str], path: Sequence[str] | None, seconds_each: int
) -> tuple[dict[str, dict[str, Any]], str, str]:
    """What one process answered, the last package it began, and how it ended."""
    env = dict(os.environ)
    if path:
        env["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [env.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seconds_each), *names],
        capture_output=True,
        env=env,
        stdin=subprocess.DEVNULL,
    )
    ending = _ending(run.returncode, run.stderr.decode(errors="replace"), seconds_each)
    found: dict[str, dict[str, Any]] = {}
    begun = ""
    for line in run.stdout.decode(errors="replace").splitlines():
        try:
            answer = json.loads(line)
        except ValueError:
            continue  # what a package prints while it is imported
        if not isinstance(answer, dict):
            continue
        if "begin" in answer:
            begun = str(answer["begin"])
        elif "name" in answer:
            found[str(answer["name"])] = answer
    return found, begun, ending


def _ending(code: int, said: str, seconds_each: int) -> str:
    if code == -signal.SIGALRM:
        return f"hangs: not imported after {seconds_each} s"
    last = said.strip().splitlines()[-1:] or [""]
    how = f"is killed by signal {-code}" if code < 0 else f"ends Python with code {code}"
    return f"{how} {last[0]}".strip()
