"""A run folder -> report.html: one file that needs no network and shows what was learned, how, and on which data.

run folder -> `run_files` (reads, and notes what is missing) -> `charts` (plotly traces) -> `page` (facts, tables, HTML)
              `benchmarks` (table before and after training) -----------------------------^
"""

from tinyzero_trl.report.page import marked, percent, seconds_by_part, short, write_report

__all__ = [
    "marked",
    "percent",
    "seconds_by_part",
    "short",
    "write_report",
]
