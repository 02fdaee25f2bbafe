"""The tasks that ship with the package, by name. A task is a module or folder with a TASK; no task imports another."""

from __future__ import annotations

from tinyzero_trl.task import Task, resolve
from tinyzero_trl.tasks import countdown, math, multiplication

TASKS: dict[str, Task] = {task.name: task for task in (countdown.TASK, math.TASK, multiplication.TASK)}


def find_task(name: str) -> Task:
    """The task called `name`, or the one in `path/file.py:TASK`.

    Raises: ValueError that lists the tasks.
    """
    task = resolve(name, among=TASKS, kind="task")
    if not isinstance(task, Task):
        raise ValueError(f"task {name!r} is a {type(task).__name__}, not a tinyzero_trl.task.Task")
    return task
