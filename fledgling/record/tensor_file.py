"""Writes safetensors files that others may read: with the permissions of every other file, which the umask decides.

safetensors itself leaves mode 0600. Every such file of this program is written here.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors and the header's metadata. Raises OSError, or SafetensorError."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)  # the umask can only be read by setting it, which other threads would see
    save_file(dict(tensors), path, metadata=metadata)
    path.chmod(mode)
