"""A decoding step that stays on the device: model, sampling and the tables of the rows, without a host read.

The host uploads the state of the rows when it changes (a row arrives, leaves, or needs another block). Between changes
a step is one call with nothing to upload: the sampled tokens are the next input, and the lengths are counted on the
device. Shapes are static: a step runs for the smallest row bucket that holds the rows, padded with rows that write to
block 0. So a step can be a CUDA graph (step_graphs.py). `PendingTokens` reads a step's tokens while the next one runs.

Start with `DeviceDecoder.launch`. Which requests are in which rows is `pipeline.py`'s.

B rows of a bucket, R rows at most, S tokens of a block, P blocks of a table, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fledgling.infer.device_sampling import RowParameters, SamplingMode, sample_rows
from fledgling.infer.step_graphs import StepGraphs
from fledgling.model.cache import KVCache
from fledgling.model.decode_attention import DecodeKernel, DecodeLayer, make_decode_mask
from fledgling.model.positions import Rotary, widen_rotary
from fledgling.model.transformer import Transformer, TransformerBlock
from fledgling.runtime.accelerator import PendingRead

MAX_STATIC_BUCKET = 256  # buckets are powers of two up to here, then multiples of it
# columns of the state of the rows, int64; fractions are the bits of their fp32
LENGTH, ACTIVE, COUNT, KEY, TOP_K, TEMPERATURE, TOP_P, MIN_P, SOURCE, GIVEN = range(10)
STATE_COLUMNS = 10

RunBlock = Callable[
    [TransformerBlock, Tensor, Rotary | None, DecodeLayer, Tensor, Tensor | None], Tensor
]  # see `run_block`


def row_bucket(rows: int) -> int:
    """Returns the number of rows to which a step of `rows` rows is padded."""
    if rows > MAX_STATIC_BUCKET:
        return -(-rows // MAX_STATIC_BUCKET) * MAX_STATIC_BUCKET
    return 1 << (rows - 1).bit_length()


def run_block(
    block: TransformerBlock,
    x: Tensor,
    rotary: Rotary | None,
    layer: DecodeLayer,
    tokens: Tensor,
    embeddings: Tensor | None,
) -> Tensor:
    """Computes one block of a decoding step, (B, 1, C); the function that is compiled for all layers.

    Args:
        x: (B, 1, C), the stream before the block.
        rotary: cosines and sines of each row's position; None: without RoPE.
        layer: keys and values of the layer, and where this step reads and writes them.
        tokens: (B, 1), the inputs.
        embeddings: (B, 1, C), the embedded inputs, for blocks that mix them in.
    """
    return block.forward(x, rotary, None, layer, None, tokens, embeddings)


class PendingTokens:
    """Tokens of a step that the device may still compute; `read` waits for them.

    Args:
        outputs: of any shape, on the device.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.pending = PendingRead(outputs)

    def read(self) -> tuple[list[int], list[float]]:
        """Returns token ids and log-probabilities of the bucket's rows."""
        ids, bits = self.pending.read()
        return ids.tolist(), bits.view(torch.float32).tolist()


class DeviceDecoder:
    """Runs decoding steps of one model over one static cache.

    Args:
        model: its weights are read in place, and may change in place.
        cache: a static cache (`KVCache(is_static=True)`).
        max_rows: rows of a step at most.
        kernel: attention (`choose_decode_kernel`).
        graphs: how a step is run: captured, compiled, or neither.
        run_block: the function `run_block`, or compiled.
    """

    def __init__(
        self,
        model: Transformer,
        cache: KVCache,
        max_rows: int,
        kernel: DecodeKernel,
        graphs: StepGraphs,
        run_block: RunBlock = run_block,
    ) -> None:
        self.model, self.cache, self.kernel, self.graphs, self.run_block = model, cache, kernel, graphs, run_block
        self.max_rows = row_bucket(max_rows)
        self.max_blocks = -(-model.config.context // cache.block_size)
        device = cache.device
        with torch.inference_mode():
            self.tokens = torch.zeros(self.max_rows, dtype=torch.int64, device=device)
            self.state = torch.zeros((self.max_rows, STATE_COLUMNS), dtype=torch.int64, device=device)
            self.block_tables = torch.zeros((self.max_rows, self.max_blocks), dtype=torch.int32, device=device)
            self.row_starts = torch.arange(self.max_rows + 1, dtype=torch.int32, device=device)

    def upload(self, state: np.ndarray, block_tables: np.ndarray) -> None:
        """Sets the rows of the next step; the copy is asynchronous.

        Args:
            state: (B, STATE_COLUMNS) int64, B a bucket. SOURCE is the row of the last step that a row continues; its
                last token is taken over on the device. Where it is negative, the token is GIVEN.
            block_tables: (B, P) int32.
        """
        rows = len(state)
        self._copy_to_device(self.state.narrow(0, 0, rows), state)
        self._copy_to_device(self.block_tables.narrow(0, 0, rows), block_tables)
        source, given = self._select_column(SOURCE, rows), self._select_column(GIVEN, rows)
        moved = self.tokens.index_select(0, source.clamp(min=0))
        self.tokens.narrow(0, 0, rows).copy_(torch.where(source < 0, given, moved))

    def launch(self, rows: int, blocks: int, mode: SamplingMode) -> PendingTokens:
        """Starts a step of the uploaded rows and does not wait for it.

        Args:
            rows: the bucket.
            blocks: most blocks in a row's table; `gather` reads this many of every row, in powers of two.
            mode: see `sample_rows`.
        """
        width = self.max_blocks if self.kernel == "varlen" else min(self.max_blocks, row_bucket(blocks))
        key = (self.cache.storage_version, rows, width, mode)
        return PendingTokens(self.graphs.run(key, lambda: self.run_step(rows, width, mode)))

    def run_step(self, rows: int, blocks: int, mode: SamplingMode) -> Tensor:
        """Samples a token of each row, makes it the next input and counts it.

        Returns:
            (2, rows) int32: token ids, and the bits of their log-probabilities in fp32.
        """
        tokens = self.tokens.narrow(0, 0, rows)
        hidden = self._compute_hidden(tokens, rows, blocks)  # (B, C)
        counts = self._select_column(COUNT, rows)
        fractions = [
            self._select_column(column, rows).int().view(torch.float32) for column in (TEMPERATURE, TOP_P, MIN_P)
        ]
        parameters = RowParameters(self._select_column(KEY, rows), self._select_column(TOP_K, rows), *fractions)
        ids, logprobs = sample_rows(self.model.compute_logits(hidden), parameters, counts, mode)
        tokens.copy_(ids)
        active = self._select_column(ACTIVE, rows)
        counts.add_(active)
        self._select_column(LENGTH, rows).add_(active)
        return torch.stack((ids.int(), logprobs.view(torch.int32)))

    def _compute_hidden(self, tokens: Tensor, rows: int, blocks: int) -> Tensor:
        """Returns the hidden states (B, C) of the rows' newest tokens (B,), after storing their keys and values."""
        model, cache, size = self.model, self.cache, self.cache.block_size
        positions = self._select_column(LENGTH, rows)
        tables = self.block_tables.narrow(0, 0, rows).narrow(1, 0, blocks)
        block_indices = tables.gather(1, (positions // size)[:, None])[:, 0]
        slots = block_indices * size + positions % size
        lengths = (positions + 1).int()
        row_starts = self.row_starts.narrow(0, 0, rows + 1)
        windows = [model.config.layer_window_size(layer) for layer in range(model.config.depth)]
        masks: dict[int | None, Tensor | None] = dict.fromkeys(windows)
        if self.kernel == "gather":
            masks = {window: make_decode_mask(lengths, blocks * size, window) for window in masks}
        x = self._embed(tokens[:, None])
        if model.smear is not None:
            x = model.smear(x, self._embed(self._exchange_tokens(tokens, positions, tables, slots)))
        x, rotary = model.positions(x, positions[:, None])
        embeddings, rotary = (
            (x if model.config.residual_scalars else None),
            widen_rotary(rotary, model.config.head_width),
        )
        streams = list[Tensor | None]()
        for block, window, keys, values in zip(model.blocks, windows, cache.keys, cache.values, strict=True):
            assert isinstance(block, TransformerBlock)
            flat_keys, flat_values = (part.transpose(1, 2).flatten(0, 1) for part in (keys, values))  # views
            if self.run_block is not run_block:  # storage grows: its size is compiled as a variable
                for storage in (flat_keys, flat_values):
                    torch._dynamo.maybe_mark_dynamic(storage, 0)
            layer = DecodeLayer(
                self.kernel, size, flat_keys, flat_values, slots, tables, lengths, row_starts, masks[window], window
            )
            x = x if model.skip_connections is None else model.skip_connections(x, streams)
            x = self.run_block(block, x, rotary, layer, tokens[:, None], embeddings)
        return model.norm.forward(x if model.skip_connections is None else model.skip_connections(x, streams))[:, 0]

    def _embed(self, tokens: Tensor) -> Tensor:
        """Returns embedded tokens, (B, T) -> (B, T, C)."""
        model = self.model
        return model.embedding_norm.forward(model.embedding(tokens).to(model.compute_dtype))

    def _exchange_tokens(self, tokens: Tensor, positions: Tensor, tables: Tensor, slots: Tensor) -> Tensor:
        """Stores the newest tokens (B,) and returns the ones before them (B, 1); every row has one."""
        (stored,) = self.cache.tokens
        stored.view(-1).index_put_((slots,), tokens)
        before = (positions - 1).clamp(min=0)
        blocks = tables.gather(1, (before // self.cache.block_size)[:, None])[:, 0]
        return stored.view(-1)[blocks * self.cache.block_size + before % self.cache.block_size][:, None]

    def _select_column(self, column: int, rows: int) -> Tensor:
        return self.state.select(1, column).narrow(0, 0, rows)

    def _copy_to_device(self, target: Tensor, values: np.ndarray) -> None:
        """Copies an array without waiting; pinned memory stays allocated until the copy has been made."""
        host = torch.from_numpy(values)
        if target.device.type == "cuda":
            host = host.pin_memory()
        target.copy_(host, non_blocking=True)
