"""The key/value cache of decoding: one tensor pair a layer, and a length for every row.

One idea: rows have lengths of their own, so one batch mixes prompts of any length and a finished row can be
handed to the next prompt. The model writes behind a row's length; only the caller moves the length on.

B rows, S capacity in tokens, H key/value heads, D head width, L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fledgling.model.config import ModelConfig


class KVCache:
    """Keys and values (L, B, H, S, D) of `rows` sequences, each with its own length in `lengths` (B,) int64."""

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.depth, rows, config.kv_heads, capacity, config.head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.live = 0  # tokens any row may look back on

    @property
    def rows(self) -> int:
        """B, the number of sequences held."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """S, the most tokens a row can hold."""
        return self.keys.shape[3]

    def positions(self, count: int) -> Tensor:
        """(B, count): where each row's next `count` tokens stand."""
        return self.lengths[:, None] + torch.arange(count, device=self.lengths.device)

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, H, T, D) at positions (B, T); return the live ones (B, H, live, D), or a few more.

        Where most of the capacity is live, all of it is returned: contiguous, it goes into a product uncopied, which is
        worth more than the part that a mask must hide (docs/benchmarks.md).
        """
        rows = torch.arange(self.rows, device=positions.device)[:, None]
        self.keys[layer][rows, :, positions] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[layer][rows, :, positions] = values.transpose(1, 2).to(self.values.dtype)
        if 4 * self.live >= 3 * self.capacity:
            return self.keys[layer], self.values[layer]
        return self.keys[layer, :, :, : self.live], self.values[layer, :, :, : self.live]

    def reserve(self, count: int) -> None:
        """Make the next `count` tokens of every row visible to attention; asserts that they fit."""
        self.live = int(self.lengths.max()) + count
        assert self.live <= self.capacity, f"cache of {self.capacity} tokens cannot hold {self.live}"

    def advance(self, counts: Tensor | int) -> None:
        """Move every row's length on by `counts` (B,) tokens, those of the last forward that are to stay."""
        self.lengths += counts

    def reset(self, row: int | Tensor) -> None:
        """Forget a row (or the rows of an index tensor): what it held lies beyond its length and is never read."""
        self.lengths[row] = 0

    def select(self, rows: Tensor) -> KVCache:
        """A cache that holds copies of the given rows, in that order."""
        chosen = object.__new__(KVCache)
        chosen.keys = self.keys[:, rows]
        chosen.values = self.values[:, rows]
        chosen.lengths = self.lengths[rows].clone()
        chosen.live = self.live
        return chosen
