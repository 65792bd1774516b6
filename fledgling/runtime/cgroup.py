"""Limits of the control groups that this process is in: of a container, a batch job or a service; none elsewhere.

A limit counts for all groups below, so those of the process's own group and of every parent are read. A container
usually sees its own group as the root; without a namespace of its own, /proc/self/cgroup names the path.
"""

from __future__ import annotations

from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")  # version 2; version 1 has a folder for each controller in it
OWN_GROUPS = Path("/proc/self/cgroup")  # lines ID:CONTROLLERS:PATH, of version 2 without controllers


def list_group_folders(controller: str) -> list[Path]:
    """Returns the folders of this process's groups for a controller ("memory", "cpu") and their parents, both versions.

    Folders that do not exist, as of the path on the host in a container, are among them.
    """
    paths = {MOUNT: "/", MOUNT / controller: "/"}
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in (line for line in lines if line.count(":") >= 2):
        _, controllers, path = line.split(":", 2)
        if ".." in Path(path).parts:  # outside of what this namespace sees
            continue
        if not controllers:
            paths[MOUNT] = path
        elif controller in controllers.split(","):
            paths[MOUNT / controller] = path
    return [mount / part.relative_to("/") for mount, path in paths.items() for part in _list_parents(path)]


def _list_parents(path: str) -> list[Path]:
    own = Path("/") / path
    return [own, *own.parents]


def read_words(file: Path, key: str = "") -> list[str]:
    """Returns the words of a file of a group, or those after `key` on a line; none where there are none."""
    try:
        lines = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return []
    return next((words[bool(key) :] for words in lines if not key or words[:1] == [key]), [])


def read_number(file: Path, key: str = "") -> int | None:
    """Returns the number in a file of a group, or after `key` on a line; None for no file, no number and "max"."""
    words = read_words(file, key)
    return int(words[0]) if len(words) == 1 and words[0].isdecimal() else None
