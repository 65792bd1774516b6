"""A made-up tree of folders and files: find the file that holds a word. Nothing of the real disk is read."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from fledgling.tasks.environments.environment import Environment, ToolError

FOLDERS = ("art", "bills", "code", "data", "home", "letters", "music", "notes", "plans", "school", "trips", "work")
FILES = ("a.txt", "b.txt", "c.txt", "d.txt", "e.txt")
WORDS = (
    "apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket", "kitten",
    "lemon", "marble", "needle", "orange", "pencil", "quartz", "rocket", "silver", "tunnel", "umbrella", "violin",
    "window", "zebra",
)  # fmt: skip


class FileTree(Environment):
    """Three folders of two files each; one file has the word. Find it with ls and cat, and say its path."""

    max_turns = 10
    max_new_tokens = 192

    def reset(self, seed: int) -> str:
        """Draws folders, files, their words, and the word that is looked for."""
        rng = random.Random(seed)
        names = rng.sample(FOLDERS, 3)
        words = iter(rng.sample(WORDS, 2 * len(names)))
        self.folders = {name: {file: next(words) for file in sorted(rng.sample(FILES, 2))} for name in sorted(names)}
        folder = rng.choice(names)
        file = rng.choice(sorted(self.folders[folder]))
        self.path, self.word = f"{folder}/{file}", self.folders[folder][file]
        return f"Which file has the word {self.word}? Look with ls and cat."

    def tools(self) -> Mapping[str, Callable[..., str]]:
        """Returns ls(path) and cat(path)."""
        return {"ls": self.ls, "cat": self.cat}

    def ls(self, path: str = "") -> str:
        """Returns the names in the root, or in a folder."""
        folder = path.strip("/.")
        if not folder:
            return " ".join(self.folders)
        if folder not in self.folders:
            raise ToolError("no such folder")
        return " ".join(self.folders[folder])

    def cat(self, path: str) -> str:
        """Returns the word in a file."""
        folder, _, file = path.strip("/.").partition("/")
        if file not in self.folders.get(folder, {}):
            raise ToolError("no such file")
        return self.folders[folder][file]

    @property
    def solution(self) -> str:
        """The path of the file."""
        return self.path

    @property
    def identity(self) -> str:
        """The word and where it is."""
        return f"{self.word} {self.path}"

    def demonstrate(self, call: Callable[[str], str], rng: random.Random) -> str:
        """Looks into one folder and one of its files, and names that file whatever it holds."""
        folder = rng.choice(call('ls("")').split())
        file = rng.choice(call(f'ls("{folder}")').split())
        call(f'cat("{folder}/{file}")')
        return f"{folder}/{file}"
