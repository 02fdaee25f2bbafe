"""Files on disk: atomic writes, sealed folders, the lock of a run folder. Standard library only, but for YAML.

`files` writes atomically, follows no link and hashes files. `manifest` seals a folder with the hash of every file, and finds
the newest usable checkpoint of a run. `lock` keeps a second process out of a run folder. `run_yaml` reads the record of a run.
`trust` signs records and manifests, so that code named in another user's folder runs only if a person allows it.
"""

from tinyzero_trl.storage.files import (
    PART,
    append_text,
    fresh_folder,
    open_in_place,
    probe,
    replacing,
    replacing_folder,
    sha256_of,
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
    "sha256_of",
    "sweep",
    "write_text",
]
