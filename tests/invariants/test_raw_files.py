"""Raw measurements stay as they were recorded: no rename of commands or keys edits them.

After a new measurement: `cd docs/measurements && sha256sum *.json *.txt > SHA256SUMS`.
"""

import hashlib
from pathlib import Path

from tests.invariants.structure import ROOT

MEASUREMENTS = ROOT / "docs" / "measurements"


def list_edited(folder: Path) -> list[str]:
    """Returns the names of files that differ from SHA256SUMS, or that only one of the two has."""
    recorded = {}
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split(maxsplit=1)
        recorded[name] = digest
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "SHA256SUMS"
    }
    return sorted(name for name in recorded | found if recorded.get(name) != found.get(name))


def test_raw_measurements_are_as_they_were_recorded():
    assert list_edited(MEASUREMENTS) == []


def test_the_check_sees_an_edited_and_a_new_file(tmp_path):
    for path in MEASUREMENTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edited = tmp_path / "features-2026-11-28-one-seed.json"
    edited.write_text(edited.read_text().replace("context-warmup", "context-growth"))
    (tmp_path / "new.json").write_text("{}")
    assert list_edited(tmp_path) == [edited.name, "new.json"]
