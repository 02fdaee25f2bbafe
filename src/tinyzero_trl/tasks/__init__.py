"""The tasks there are, as a dict that can be read."""

from __future__ import annotations

from tinyzero_trl.task import Task, resolve
from tinyzero_trl.tasks import countdown, math, multiplication

TASKS: dict[str, Task] = {task.name: task for task in (countdown.TASK, math.TASK, multiplication.TASK)}


def find_task(name: str) -> Task:
    """The task called `name`, or the one in `path/file.py:TASK`.

    Raises: ValueError that lists what there is.
    """
    task = resolve(name, among=TASKS, kind="task")
    if not isinstance(task, Task):
        raise ValueError(f"task {name!r} is a {type(task).__name__}, not a tinyzero_trl.task.Task")
    return task
