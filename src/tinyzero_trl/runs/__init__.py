"""The folder of a run: chosen, locked, recorded, and continued where a run stopped."""

from tinyzero_trl.runs.record import metric_lines

__all__ = [
    "metric_lines",
]
