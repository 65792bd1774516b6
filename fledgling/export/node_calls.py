"""Runs the script of a page in one file in Node, where that is installed: for the comparison that ends an export."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledgling.export.html import read_modules
from fledgling.export.link_modules import link_modules

MIN_NODE = (20, 16)  # of process.getBuiltinModule
SECONDS = 600  # of all calls together


def find_node() -> str | None:
    """Returns the version of the installed Node; None where there is none, or an older one than `MIN_NODE`."""
    path = shutil.which("node")
    if path is None:
        return None
    printed = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=60).stdout
    version = printed.strip().removeprefix("v")
    numbers = version.split(".")
    usable = len(numbers) == 3 and numbers[0].isdigit() and tuple(map(int, numbers[:2])) >= MIN_NODE
    return version if usable else None


def call_in_node(page: Path, calls: Sequence[Sequence[Any]]) -> list[Any]:
    """Returns the results of calls of page/node_calls.js, each a name and arguments."""
    script = link_modules("node_calls.js", read_modules())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.mjs"
        path.write_text(script, encoding="utf-8")
        request = json.dumps({"page": str(page.resolve()), "calls": calls})
        done = subprocess.run(["node", path], input=request.encode(), capture_output=True, check=False, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(f"node failed: {done.stderr.decode(errors='replace')[-2000:]}")
    return json.loads(done.stdout)


def read_logits(encoded: str, vocab_size: int) -> Tensor:
    """Returns the result of a call of `logits`, (T, V) float32."""
    return torch.frombuffer(bytearray(base64.b64decode(encoded)), dtype=torch.float32).view(-1, vocab_size)
