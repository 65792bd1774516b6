"""A decoding step as one call of cpp/step.cpp: a few new tokens, one or more for each row, through all blocks.

At batch 1 a product of a block takes a tenth of a millisecond, and the forty small operations between products take as
long again. Here the blocks and the norm after them are described once, by addresses, and run in one call on the weights
in place; the embedding before them is the model's. The result equals the model's up to rounding: between the products
it keeps fp32 where the model rounds to bf16. Each new token is a query of its own; those of one row read the same
blocks, each up to its own position.

It is for models in bf16 on a CPU; `backend.py` chooses it.

B rows, T new tokens of the row that has the most, Q queries (all new tokens), C width, V vocabulary, N blocks of a
cache, G key/value heads, D head width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_int64, c_void_p
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding as look_up

from fledgling.kernels import native
from fledgling.kernels.native import NativeMatrix
from fledgling.kernels.quantized_tensor import QuantizedTensor
from fledgling.model.adapter import has_adapter
from fledgling.model.cache import CacheRow, KVCache
from fledgling.model.feed_forward import GatedFeedForward
from fledgling.model.norm import LayerNorm, WeightedRMSNorm
from fledgling.model.positions import LearnedPositions
from fledgling.model.scalars import Gate, LearnedScalars
from fledgling.model.transformer import Transformer, TransformerBlock
from fledgling.model.value_embedding import ValueEmbedding

ACTIVATIONS = ("relu2", "gelu", "swiglu")  # the index is the number in cpp/block.h
MAX_HEAD_WIDTH = 512
MAX_STEP_TOKENS = 256  # with more new tokens the model is about as fast
Pool = ctypes.Array[c_void_p]  # of each layer, the address of the first block


class NativeNorm(ctypes.Structure):
    """`Norm` of block.h."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("centered", c_int64), ("eps", c_double))


class NativeLayer(ctypes.Structure):
    """`Layer` of block.h."""

    _fields_ = (
        *((name, NativeNorm) for name in ("attention_norm", "feed_forward_norm")),
        *((name, NativeMatrix) for name in ("query", "key", "value", "output", "up", "gate", "down")),
        *((name, c_void_p) for name in ("value_gate", "head_gate", "mix", "skip")),
        *((name, c_int64) for name in ("skip_from", "window")),
    )


class NativeShape(ctypes.Structure):
    """`Shape` of block.h."""

    _fields_ = (
        *((name, c_int64) for name in ("layers", "width", "heads", "kv_heads", "head_width", "intermediate_size")),
        *((name, c_int64) for name in ("activation", "normalize")),
        ("eps", c_double),
        *((name, c_int64) for name in ("exclusive", "keeps")),
        *(("back_out", c_void_p), ("back_out_from", c_int64)),
        ("last_norm", NativeNorm),
        *(("cosine", c_void_p), ("sine", c_void_p), ("context", c_int64)),
    )


def supports_decoding_step(model: Transformer) -> bool:
    """Whether native code can run this model's blocks on their weights in place."""
    config = model.config
    widths = (config.width, config.head_width, config.intermediate_size)
    if (
        any(width % 32 for width in widths)
        or config.head_width > MAX_HEAD_WIDTH
        or native.load_native_library() is None
    ):
        return False
    if has_adapter(model) or not config.has_plain_blocks:
        return False
    weights = [part.weight for part in (*model.blocks.modules(), model.head) if isinstance(part, nn.Linear)]
    if any(isinstance(weight, QuantizedTensor) and weight.matrix is None for weight in weights):
        return False
    return all(weight.device.type == "cpu" and weight.dtype == torch.bfloat16 for weight in weights)


class DecodingStep:
    """Runs the blocks of `model` and its last norm for at most MAX_STEP_TOKENS new tokens."""

    def __init__(self, model: Transformer) -> None:
        config = model.config
        self.model = model
        self.vectors: list[tuple[Tensor, nn.Parameter]] = []  # copies in fp32, and their sources
        self.value_embeddings: list[ValueEmbedding | None] = []  # of each layer
        back_out = model.skip_connections.back_out if model.skip_connections else None
        tables = [] if isinstance(model.positions, LearnedPositions) else list(model.positions.buffers())
        # (context, D / 2) in fp32, with the model's rounding to bf16
        self.angles = [table.to(torch.bfloat16).float().contiguous() for table in tables]
        self.pools: WeakKeyDictionary[KVCache, tuple[int, list[Pool]]] = WeakKeyDictionary()  # by storage_version
        self.shape = NativeShape(
            config.depth,
            config.width,
            config.heads,
            config.kv_heads,
            config.head_width,
            config.intermediate_size,
            ACTIVATIONS.index(config.activation),
            int(config.qk_norm),
            config.norm_eps,
            int(config.exclusive_attention),
            int(model.skip_connections is not None),
            self._copy_weight(back_out),
            config.depth // 2,
            self._make_norm(model.norm),
            *(self.angles[n].data_ptr() if self.angles else None for n in range(2)),
            config.context,
        )
        self.layers = (NativeLayer * config.depth)(*map(self._make_layer, model.blocks))  # of addresses in the weights
        self.head = self._make_matrix(model.head)

    def refresh(self) -> None:
        """Copies the vectors of the model as they are now; its matrices are read in place."""
        for copy, parameter in self.vectors:
            copy.copy_(parameter)

    def __call__(self, tokens: Tensor, cache: KVCache, rows: Sequence[CacheRow], counts: Sequence[int]) -> Tensor:
        """Computes the hidden states of new tokens, as the model's `forward` does.

        Allocates the blocks that the rows need; the caller advances the lengths of the rows.

        Args:
            tokens: (B, T) int64, of which the first `counts[b]` of row b are read.
            counts: (B,), the number of new tokens of each row.

        Returns:
            (B, T, C); 0 at padding.
        """
        cache.reserve(rows, counts)
        most = max(len(row.block_table) for row in rows)
        tables = torch.tensor(
            [[block.index for block in row.block_table] + [0] * (most - len(row.block_table)) for row in rows]
        )
        if all(count == 1 for count in counts):
            return self.run_blocks(tokens, torch.tensor([[row.length] for row in rows]), cache, tables)
        row_numbers = [number for number, count in enumerate(counts) for _ in range(count)]
        offsets = [offset for count in counts for offset in range(count)]
        positions = torch.tensor([[rows[number].length + n] for number, n in zip(row_numbers, offsets, strict=True)])
        queries = tokens[row_numbers, offsets][:, None]  # (Q, 1)
        hidden = self.run_blocks(queries, positions, cache, tables[row_numbers])
        padded = hidden.new_zeros(*tokens.shape, hidden.shape[-1])
        padded[row_numbers, offsets] = hidden[:, 0]
        return padded

    def run_blocks(self, tokens: Tensor, positions: Tensor, cache: KVCache, tables: Tensor) -> Tensor:
        """Computes the hidden states (Q, 1, C) of the queries, and writes their keys and values to the cache.

        Args:
            tokens, positions: (Q, 1) int64.
            cache: of bf16; its blocks of a layer are (N, G, S, D).
            tables: (Q, ...) int64, the blocks of each query's row, in order.
        """
        x = self._embed(tokens, positions, cache, tables).float().contiguous()  # (Q, 1, C)
        out = torch.empty(x.shape, dtype=torch.bfloat16)
        added = [None if table is None else look_up(tokens, table.weight).float() for table in self.value_embeddings]
        additions = (c_void_p * len(added))(*(None if rows is None else rows.data_ptr() for rows in added))
        library = native.load_native_library()
        assert library is not None
        library.fledgling_step(
            ctypes.byref(self.shape),
            self.layers,
            x.data_ptr(),
            out.data_ptr(),
            len(tokens),
            *self._find_pools(cache),
            tables.data_ptr(),
            *(tables.shape[1], cache.block_size),
            positions.data_ptr(),
            additions,
            torch.get_num_threads(),
        )
        return out

    def _find_pools(self, cache: KVCache) -> list[Pool]:
        """Returns the addresses of each layer's keys, and of its values."""
        version, pools = self.pools.get(cache, (-1, []))
        if version != cache.storage_version:
            addresses = [[layer.data_ptr() for layer in part] for part in (cache.keys, cache.values)]
            pools = [(c_void_p * len(part))(*part) for part in addresses]
            self.pools[cache] = cache.storage_version, pools
        return pools

    def _embed(self, tokens: Tensor, positions: Tensor, cache: KVCache, tables: Tensor) -> Tensor:
        """Returns the input of the first block (Q, 1, C); with smear the cache keeps the ids of the tokens."""
        model = self.model

        def embed(ids: Tensor) -> Tensor:
            return model.embedding_norm(model.embedding(ids).to(torch.bfloat16))

        x = embed(tokens)
        if model.smear is not None:
            (stored,), size = cache.tokens, cache.block_size
            stored[tables.gather(1, positions // size), positions % size] = tokens
            before = (positions - 1).clamp(min=0)
            previous = embed(stored[tables.gather(1, before // size), before % size])
            x = model.smear(x, previous * (positions > 0)[..., None].to(x.dtype))
        if isinstance(model.positions, LearnedPositions):
            x, _ = model.positions(x, positions.clamp(max=model.config.context - 1))
        return x

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """hidden_states (..., C) of at most `native.MAX_ROWS` tokens -> logits (..., V) in fp32."""
        return self.model.apply_softcap(native.multiply_matrix(hidden_states, self.head))

    def accepts(self, counts: Sequence[int], cache: KVCache) -> bool:
        """Returns whether `counts` (B,) new tokens can be run: few tokens, a bf16 cache, blocks of a multiple of 4.

        A static cache has another layout in memory.
        """
        fits = cache.dtype == torch.bfloat16 and not cache.block_size % 4 and not cache.is_static
        return fits and sum(counts) <= MAX_STEP_TOKENS

    def _make_layer(self, block: nn.Module) -> NativeLayer:
        assert isinstance(block, TransformerBlock)
        attention, mlp = block.attention, block.mlp
        self.value_embeddings.append(attention.value_embedding)
        up, gate = (mlp.up_proj, mlp.gate_proj) if isinstance(mlp, GatedFeedForward) else (mlp.fc1, None)
        return NativeLayer(
            self._make_norm(block.attention_norm),
            self._make_norm(block.mlp_norm),
            *map(self._make_matrix, (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, up)),
            NativeMatrix() if gate is None else self._make_matrix(gate),
            self._make_matrix(mlp.output_projection),
            self._copy_weight(attention.value_embedding.gate if attention.value_embedding else None),
            self._copy_weight(attention.gate),
            self._copy_weight(block.residual),
            *self._find_skip(attention.layer),
            attention.window_size or 0,
        )

    def _find_skip(self, layer: int) -> tuple[int | None, int]:
        """Returns the address of the scalar of a layer's skip connection, and the layer whose stream it reads."""
        connections, place = self.model.skip_connections, self.model.config.depth - 2 - layer
        if connections is None or connections.skips is None or not 0 <= place < connections.num_skips:
            return None, 0
        address = self._copy_weight(connections.skips)
        assert address is not None
        return address + 4 * place, place + 1

    def _make_norm(self, norm: nn.Module) -> NativeNorm:
        weight = self._copy_vector(norm.weight) if isinstance(norm, WeightedRMSNorm | LayerNorm) else None
        bias = self._copy_vector(norm.bias) if isinstance(norm, LayerNorm) else None
        addresses = [None if vector is None else vector.data_ptr() for vector in (weight, bias)]
        return NativeNorm(*addresses, int(isinstance(norm, LayerNorm)), norm.eps)

    def _make_matrix(self, linear: nn.Linear) -> NativeMatrix:
        weight, bias = linear.weight, None if linear.bias is None else self._copy_vector(linear.bias)
        if isinstance(weight, QuantizedTensor):
            assert weight.matrix is not None
            return native.add_bias(weight.matrix, bias)
        return native.describe_matrix(weight.detach(), None, 16, bias)

    def _copy_weight(self, module: Gate | LearnedScalars | None) -> int | None:
        """Returns the address of a copy of a gate's weights or of scalars."""
        return None if module is None else self._copy_vector(module.weight).data_ptr()

    def _copy_vector(self, parameter: nn.Parameter) -> Tensor:
        """Returns a copy in fp32, which `refresh` updates."""
        copy = parameter.detach().float().contiguous().clone()
        self.vectors.append((copy, parameter))
        return copy
