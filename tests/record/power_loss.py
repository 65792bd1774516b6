"""Every state that a power cut may leave of a directory: records the calls of a program, and builds those states.

    recording = Recording(root)
    with recording.watch():
        save(root / "a")
        recording.mark("a")                    # from here on a must survive
    for state in recording.states():
        state.build(scratch)                   # the directory after the cut; state.marks: what had to survive

The rules are those of POSIX, harsher than any journal: the bytes of a file are safe once it was flushed; names are safe
once their directory was flushed; of the rest any part may be there and any may be lost, whatever came first. A write
that was not flushed may be absent, cut in half or zeros. Renames are atomic.

Calls are intercepted in `os`; writes are found by comparing the directory before each of them, so that those of
extensions and other processes count too.
"""

import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

# Names that may be lost: up to this many, every subset is tried; of more, prefixes, single ones and random ones.
ALL_SUBSETS = 6
RANDOM_SUBSETS = 24
ROOT = 0
INTERCEPTED = ("fsync", "replace", "rename", "mkdir", "unlink", "remove", "rmdir", "truncate", "ftruncate", "open")


@dataclass(frozen=True)
class Call:
    """A call that changes or flushes the directory, on nodes (files and directories) numbered as they appear."""

    kind: str  # create, mkdir, write, flush, rename, unlink
    node: int
    parent: int = -1  # the directory whose names change
    name: str = ""
    old_parent: int = -1  # of a rename
    old_name: str = ""
    content: bytes = b""

    @property
    def changes_names(self) -> bool:
        """Whether the call is safe only once a directory was flushed."""
        return self.kind in ("create", "mkdir", "rename", "unlink")


@dataclass
class Disk:
    """Names of directories and bytes of files, by node."""

    names: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    files: dict[int, bytes] = field(default_factory=dict)

    def apply(self, call: Call) -> None:
        """Applies a call, as far as its nodes exist."""
        names = self.names.setdefault(call.parent, {})
        if call.kind in ("create", "mkdir", "rename"):
            old = self.names.get(call.old_parent, {})
            if call.kind == "rename" and old.get(call.old_name) == call.node:
                del old[call.old_name]
            names[call.name] = call.node
        elif call.kind == "unlink" and names.get(call.name) == call.node:
            del names[call.name]

    def tree(self, contents: dict[int, bytes], node: int = ROOT, path: str = "") -> Iterator[tuple[str, bytes | None]]:
        """Yields (path, bytes) of all files and (path, None) of all directories that can be reached."""
        for name, child in sorted(self.names.get(node, {}).items()):
            yield f"{path}{name}", contents.get(child)
            if child not in contents:
                yield from self.tree(contents, child, f"{path}{name}/")


@dataclass(frozen=True)
class State:
    """A directory after a power cut. calls: how many calls were made before it."""

    tree: tuple[tuple[str, bytes | None], ...]
    marks: tuple[str, ...]
    calls: int

    def build(self, directory: Path) -> Path:
        """Replaces `directory` by this state and returns it."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for name, content in self.tree:
            if content is None:
                (directory / name).mkdir()
            else:
                (directory / name).write_bytes(content)
        return directory


class Recording:
    """Records what happens under `root`. What is there when it starts is safe on the disk."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self.calls: list[Call] = []
        self.marks: list[tuple[int, str]] = []  # calls made before, label
        self.shadow, self.nodes, self.lock = Disk(), 1, threading.RLock()
        self._compare(record=False)
        self.start = Disk({node: dict(names) for node, names in self.shadow.names.items()}, dict(self.shadow.files))

    def mark(self, label: str) -> None:
        """Says that what was done so far must survive."""
        with self.lock:
            self._compare()
            self.marks.append((len(self.calls), label))

    def count_calls(self) -> Counter:
        """Returns how many calls of each kind were recorded."""
        return Counter(call.kind for call in self.calls)

    # ---- recording -----------------------------------------------------------------------------------

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Intercepts the calls of the block."""
        real = {name: getattr(os, name) for name in INTERCEPTED}
        for name in INTERCEPTED:
            setattr(os, name, self._intercept(name, real[name]))
        try:
            yield
        finally:
            for name in INTERCEPTED:
                setattr(os, name, real[name])
            self._compare()

    def _intercept(self, name, real):
        def call(*args, **more):
            with self.lock:
                self._compare()
                path = self._path_of(args[0], more.get("dir_fd", more.get("src_dir_fd")))
                target = self._path_of(args[1], more.get("dst_dir_fd")) if name in ("replace", "rename") else None
                result = real(*args, **more)
                self._record(name, path, target)
                self._compare()
                return result

        return call

    def _path_of(self, path, directory_fd=None) -> str | None:
        """Returns a path relative to the root, "" for the root, None for one outside."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        path = os.fsdecode(os.fspath(path))
        if directory_fd is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{directory_fd}"), path)
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if path != self.root and not path.startswith(self.root + os.sep):
            return None
        return path[len(self.root) + 1 :]

    def _find(self, path: str) -> tuple[int, str, int]:
        """Returns (parent, name, node) of a path in the shadow."""
        parent, node, name = -1, ROOT, ""
        for name in filter(None, path.split(os.sep)):
            parent, node = node, self.shadow.names[node][name]
        return parent, name, node

    def _record(self, name: str, path: str | None, target: str | None) -> None:
        if path is None or name in ("truncate", "ftruncate", "open"):
            return  # their effects are found by comparing
        if name == "fsync":
            self.calls.append(
                Call("flush", self._find(path)[2], content=self.shadow.files.get(self._find(path)[2], b""))
            )
        elif name == "mkdir":
            parent = self._find(os.path.dirname(path))[2]
            self._add(Call("mkdir", self._new_node(None), parent, os.path.basename(path)))
        elif name in ("unlink", "remove", "rmdir"):
            parent, base, node = self._find(path)
            self._add(Call("unlink", node, parent, base))
        elif name in ("replace", "rename"):
            assert target is not None, "a rename out of the directory is not modelled"
            parent, base, node = self._find(path)
            self._add(
                Call("rename", node, self._find(os.path.dirname(target))[2], os.path.basename(target), parent, base)
            )

    def _add(self, call: Call) -> None:
        self.calls.append(call)
        self.shadow.apply(call)

    def _new_node(self, content: bytes | None) -> int:
        node, self.nodes = self.nodes, self.nodes + 1
        if content is None:
            self.shadow.names[node] = {}
        else:
            self.shadow.files[node] = content
        return node

    def _compare(self, record: bool = True, directory: str = "", node: int = ROOT) -> None:
        """Records files that appeared and bytes that changed since the last call."""
        place = os.path.join(self.root, directory) if directory else self.root
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            path, is_directory = os.path.join(directory, entry.name), entry.is_dir(follow_symlinks=False)
            child = self.shadow.names[node].get(entry.name)
            content = None if is_directory else Path(entry.path).read_bytes()
            if child is None:
                child = self._new_node(None if is_directory else b"")
                call = Call("mkdir" if is_directory else "create", child, node, entry.name)
                self.shadow.apply(call)
                if record:
                    self.calls.append(call)
            if is_directory:
                self._compare(record, path, child)
            elif self.shadow.files[child] != content:
                self.shadow.files[child] = content
                if record:
                    self.calls.append(Call("write", child, content=content))

    # ---- after the cut -------------------------------------------------------------------------------

    def states(self, seed: int = 0) -> Iterator[State]:
        """Yields the states that a cut before, between and after the calls may leave, each once per set of marks."""
        chance, seen = random.Random(seed), set()
        for count in range(len(self.calls) + 1):
            marks = tuple(label for after, label in self.marks if after <= count)
            versions = self._versions(count)
            for survivors in self._subsets(self._unsafe(count), chance):
                disk = Disk({node: dict(names) for node, names in self.start.names.items()})
                for index, call in enumerate(self.calls[:count]):
                    if call.changes_names and index in survivors:
                        disk.apply(call)
                for contents in _choose_contents(versions, chance):
                    tree = tuple(disk.tree(contents))
                    if (tree, marks) not in seen:
                        seen.add((tree, marks))
                        yield State(tree, marks, count)

    def _unsafe(self, count: int) -> tuple[set[int], list[int]]:
        """Returns the indices of the calls on names that are safe, and of those that may be lost."""
        flushed, safe, unsafe = set(), set(), []
        for index in reversed(range(count)):
            call = self.calls[index]
            if call.kind == "flush":
                flushed.add(call.node)
            elif call.changes_names:
                (safe.add if call.parent in flushed else unsafe.append)(index)
        return safe, unsafe[::-1]

    def _subsets(self, split: tuple[set[int], list[int]], chance: random.Random) -> Iterator[set[int]]:
        """Yields sets of calls that survive: the safe ones with subsets of the others."""
        safe, unsafe = split
        if len(unsafe) <= ALL_SUBSETS:
            for size in range(len(unsafe) + 1):
                yield from (safe | set(kept) for kept in combinations(unsafe, size))
            return
        yield from (safe | set(unsafe[:size]) for size in range(len(unsafe) + 1))
        for index in unsafe:
            yield safe | {index}
            yield safe | set(unsafe) - {index}
        for _ in range(RANDOM_SUBSETS):
            yield safe | {index for index in unsafe if chance.random() < 0.5}

    def _versions(self, count: int) -> dict[int, list[bytes]]:
        """Returns what each file may hold: its flushed bytes first, then every younger version, halved, and zeros."""
        versions = {node: [content] for node, content in self.start.files.items()}
        for call in self.calls[:count]:
            if call.kind == "create":
                versions[call.node] = [b""]
            elif call.kind == "write":
                versions[call.node].append(call.content)
            elif call.kind == "flush" and call.node in versions:
                versions[call.node] = [call.content]
        for contents in versions.values():
            if len(contents) > 1:
                old, new = contents[0], contents[-1]
                kept = len(old) if new.startswith(old) else 0
                half = kept + (len(new) - kept) // 2
                contents += [new[:half], new[:kept] + bytes(len(new) - kept)]
        return versions


def _choose_contents(versions: dict[int, list[bytes]], chance: random.Random) -> Iterator[dict[int, bytes]]:
    """Yields combinations: all flushed, all newest, all halved, all zeros, and one at random."""
    yield {node: contents[0] for node, contents in versions.items()}
    if all(len(contents) == 1 for contents in versions.values()):
        return
    for place in (-3, -2, -1):
        yield {node: contents[place] if len(contents) > 1 else contents[0] for node, contents in versions.items()}
    yield {node: chance.choice(contents) for node, contents in versions.items()}
