"""Files that are whole or absent, folders with a seal, one writer at a time.

`files` writes atomically and follows no link; `manifest` seals a folder with the hash of every file and finds the newest
checkpoint that is whole; `lock` keeps a second process out of a folder; `run_yaml` reads a run's record, and `trust` signs
records, so that code named in another user's folder does not run unasked.
"""

from tinyzero_trl.storage.files import (
    PART,
    append_text,
    fresh_folder,
    open_in_place,
    probe,
    replacing,
    replacing_folder,
    sweep,
    write_text,
)
from tinyzero_trl.storage.lock import locked
from tinyzero_trl.storage.manifest import MANIFEST
from tinyzero_trl.storage.run_yaml import is_number, plain_record

__all__ = [
    "MANIFEST",
    "PART",
    "append_text",
    "fresh_folder",
    "is_number",
    "locked",
    "open_in_place",
    "plain_record",
    "probe",
    "replacing",
    "replacing_folder",
    "sweep",
    "write_text",
]
