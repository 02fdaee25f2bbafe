"""The run folder: everything that happened in a run, and the means to continue it.

cfg -> `folder` (choose it, lock it) -> `record` (write run.yaml) -> training writes checkpoints and metrics
run.yaml, newest checkpoint -> `resuming` (is it the same run? is anything left to do?) -> `folder`
"""

from tinyzero_trl.runs.record import metric_lines

__all__ = [
    "metric_lines",
]
