"""A run folder -> one HTML file that needs no network: `run_files` reads, `charts` draws, `page` writes."""

from tinyzero_trl.report.page import marked, percent, seconds_by_part, short, write_report

__all__ = [
    "marked",
    "percent",
    "seconds_by_part",
    "short",
    "write_report",
]
