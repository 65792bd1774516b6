"""Files that systems, file servers and editors leave in any folder: they say nothing about what is there."""

from __future__ import annotations

from fnmatch import fnmatchcase

OF_SYSTEMS = (
    *(".ds_store", "._*", ".appledouble", ".localized", "thumbs.db", "thumbs.db:*", "ehthumbs.db", "desktop.ini"),
    *(".directory", "@eadir", ".nfs*", ".fuse_hidden*", ".stfolder", ".dropbox*", "lost+found", "*:zone.identifier"),
)
OF_EDITORS = ("*~", ".*.sw?", "#*#", ".#*", "*.bak", "*.orig", ".ipynb_checkpoints", "*.tmp")


def is_clutter(name: str) -> bool:
    """Returns whether a file or folder of this name is one that a system or an editor leaves: .DS_Store, notes.txt~."""
    return any(fnmatchcase(name.lower(), pattern) for pattern in (*OF_SYSTEMS, *OF_EDITORS))
