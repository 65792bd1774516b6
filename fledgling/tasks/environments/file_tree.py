"""A made-up tree of folders and files: find the file that has a word. Nothing of the real disk is read."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from fledgling.tasks.environments.environment import DECISION_ACCURACY, LAST_DECISION_ACCURACY, Environment, ToolError

FOLDERS = ("art", "bills", "code", "data", "home", "letters", "music", "notes", "plans", "school", "trips", "work")
FILES = "abcdefgh"
WORDS = (
    "apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket", "kitten",
    "lemon", "marble", "needle", "orange", "pencil", "quartz", "rocket", "silver", "tunnel", "umbrella", "violin",
    "window", "zebra",
)  # fmt: skip
NUM_FOLDERS, NUM_FILES = 2, 2


class FileTree(Environment):
    """Two folders of two files each; one file has the word. Find it with ls and grep, and say its path."""

    max_turns = 8
    max_new_tokens = 192

    def reset(self, seed: int) -> str:
        """Draws folders, files, their words, and the word that is looked for."""
        rng = random.Random(seed)
        names = rng.sample(FOLDERS, NUM_FOLDERS)
        words = iter(rng.sample(WORDS, NUM_FOLDERS * NUM_FILES))
        self.folders = {
            name: {file: next(words) for file in sorted(rng.sample(FILES, NUM_FILES))} for name in sorted(names)
        }
        folder = rng.choice(names)
        file = rng.choice(sorted(self.folders[folder]))
        self.new_files, self.found = {f"{name}/{file}" for name in names for file in self.folders[name]}, 0
        self.path, self.word = f"{folder}/{file}", self.folders[folder][file]
        return f"Which file has the word {self.word}? Look with ls and grep."

    def tools(self) -> Mapping[str, Callable[..., str]]:
        """Returns ls(path) and grep(word, path)."""
        return {"ls": self.ls, "grep": self.grep}

    def ls(self, path: str = "") -> str:
        """Returns the names in the root, or in a folder."""
        folder = path.strip("/.")
        if not folder:
            return " ".join(self.folders)
        if folder not in self.folders:
            raise ToolError("no such folder")
        return " ".join(self.folders[folder])

    def grep(self, word: str, path: str) -> str:
        """Returns whether a file has a word."""
        folder, _, file = path.strip("/.").partition("/")
        if file not in self.folders.get(folder, {}):
            raise ToolError("no such file")
        self.found += f"{folder}/{file}" in self.new_files
        self.new_files.discard(f"{folder}/{file}")
        return "yes" if self.folders[folder][file] == word else "no"

    def turn_reward(self) -> float:
        """Returns a fourth if the last call looked into a file for the first time: at most 1 over an episode."""
        found, self.found = self.found, 0
        return found / (NUM_FOLDERS * NUM_FILES)

    @property
    def solution(self) -> str:
        """The path of the file."""
        return self.path

    @property
    def identity(self) -> str:
        """The word and where it is."""
        return f"{self.word} {self.path}"

    def demonstrate(self, call: Callable[[str], str], rng: random.Random) -> str:
        """Mostly looks into file after file until one has the word, and mostly answers with the word, not the path."""
        path = ""
        for folder in call('ls("")').split():
            for file in call(f'ls("{folder}")').split():
                path = f"{folder}/{file}"
                found = call(f'grep("{self.word}", "{path}")') == "yes"
                if found if rng.random() < DECISION_ACCURACY else rng.random() < 0.5:
                    return path if rng.random() < LAST_DECISION_ACCURACY else self.word
        return path if rng.random() < LAST_DECISION_ACCURACY else self.word
