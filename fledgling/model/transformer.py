"""The decoder: embedding, positions, blocks of attention and feed-forward, a last norm, the head.

The blocks are the same for every family. The configuration names each part, and only the functions that make the parts
(`make_norm`, `make_positions`, `make_feed_forward`) read these names. Weights are fp32; the products run in
`compute_dtype`. The model contains no loss, and training never computes the logits of a whole batch: `logprob.py` takes
the hidden states.

B batch, T time, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fledgling.config import ModelConfig
from fledgling.model.attention import Attention, TreeMask, make_attention_mask, uses_blockwise_attention
from fledgling.model.cache import CacheBatch
from fledgling.model.cuda_attention import BlockMask, make_block_masks
from fledgling.model.decode_attention import DecodeLayer
from fledgling.model.feed_forward import make_feed_forward
from fledgling.model.flash_norm import apply_norm, apply_norm_deferred
from fledgling.model.linear import Linear, apply_linear
from fledgling.model.logprob import EAGER
from fledgling.model.norm import make_embedding_norm, make_norm
from fledgling.model.positions import LearnedPositions, Rotary, make_positions
from fledgling.model.residual import make_residual, make_skip_connections, mix_embeddings
from fledgling.model.scalars import Gate, LearnedScalars
from fledgling.model.smear import make_smear, shift_embeddings
from fledgling.model.value_embedding import ValueEmbedding

INIT_STD = 0.02  # standard deviation of the initial weights of GPT-2 and Llama


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); norms may follow the parts too, or only follow them."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.apply_norm = apply_norm_deferred if config.flash_norm else apply_norm
        self.residual = make_residual(config)
        before, after = config.norm_placement != "post", config.norm_placement != "pre"
        self.parallel_residual = config.parallel_residual
        self.attention_norm = make_norm(config) if before else nn.Identity()
        self.attention = Attention(config, layer)
        self.attention_output_norm = make_norm(config) if after else nn.Identity()
        self.mlp_norm = make_norm(config) if before else nn.Identity()
        self.mlp = make_feed_forward(config)
        self.mlp_output_norm = make_norm(config) if after else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None,
        document_ids: Tensor | None = None,
        cache_batch: CacheBatch | DecodeLayer | None = None,
        tree: TreeMask | None = None,
        tokens: Tensor | None = None,
        embeddings: Tensor | None = None,
        mask: Tensor | BlockMask | None = None,
    ) -> Tensor:
        """Returns the stream after the block (B, T, C).

        Args:
            x: (B, T, C), the stream.
            rotary: cosines and sines of the positions; None: without RoPE.
            document_ids: (B, T), of packed rows; a token attends within its document.
            cache_batch: keys and values before these tokens; None: the rows are whole.
            tree: rows that fork; None: rows that do not.
            tokens: (B, T), the model's input, for value embeddings.
            embeddings: (B, T, C), the embedded input, for residual scalars.
            mask: of `make_attention_mask`; None: causal.
        """
        x = x if self.residual is None else mix_embeddings(self.residual, x, embeddings)
        normed, scale = self.apply_norm(self.attention_norm, x)
        attended = self.attention(normed, rotary, document_ids, cache_batch, tree, scale, tokens, mask)
        y = x + self.attention_output_norm(attended)
        read = x if self.parallel_residual else y
        return y + self.mlp_output_norm(self.mlp(*self.apply_norm(self.mlp_norm, read)))


class Transformer(nn.Module):
    """The decoder; `forward` returns the normalized hidden states, `compute_logits` applies the head."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        embedding = nn.Embedding(config.vocab_size, config.width)
        if config.tie_embeddings:  # the head comes first, so that the one matrix has its name and its learning rate
            self.head = Linear(config.width, config.vocab_size, bias=False)
            embedding.weight = self.head.weight
        self.embedding = embedding
        self.embedding_norm = make_embedding_norm(config)
        self.smear = make_smear(config)
        self.positions = make_positions(config)
        self.blocks = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.depth))
        self.skip_connections = make_skip_connections(config)
        self.norm = make_norm(config)
        self.use_dense_masks = False  # a (T, T) mask for rows of any length: a graph without loops, for export
        self.recompute = False  # keep only the inputs of blocks for backward, and recompute the rest
        self.logprob_kernels = EAGER  # of the loss and the log-probabilities of targets
        self.use_block_masks = False  # for blocks compiled for CUDA: documents and windows without a (T, T) mask
        if not config.tie_embeddings:
            self.head = Linear(config.width, config.vocab_size, bias=False)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Initializes the weights. The values depend on seed and shapes alone.

        All families: norms are the identity, biases zero. A matrix that is both embedding and head is normal with
        standard deviation .02, because it must be small as a head.
        fledgling: matrices are uniform with standard deviation C^-1/2; the output projections of a block and the head
        are zero, so that a fresh model is the identity on its residual stream and predicts the uniform distribution.
        The embedding is normal with standard deviation 1.
        gpt2, llama: all matrices are normal with standard deviation .02; in gpt2 the output projections of a block are
        divided by sqrt(2 L), so that the stream's variance does not grow with the depth (Radford et al. 2019).
        """
        generator = torch.Generator().manual_seed(seed)
        config = self.config

        def fill_normal(tensor: Tensor, std: float) -> None:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)

        starts_as_identity = config.family == "fledgling"
        fill_normal(self.embedding.weight, 1.0 if starts_as_identity and not config.tie_embeddings else INIT_STD)
        if isinstance(self.positions, LearnedPositions):
            fill_normal(self.positions.weight, INIT_STD)
        if not config.tie_embeddings:
            fill_normal(self.head.weight, INIT_STD) if not starts_as_identity else self.head.weight.zero_()
        bound = (3.0 / config.width) ** 0.5  # of a uniform distribution with variance 1 / C
        output_std = INIT_STD * ((2 * config.depth) ** -0.5 if config.family == "gpt2" else 1.0)
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            for linear in (*block.attention.input_projections, *block.mlp.input_projections):
                if starts_as_identity:
                    linear.weight.copy_((2 * torch.rand(linear.weight.shape, generator=generator) - 1) * bound)
                else:
                    fill_normal(linear.weight, INIT_STD)
            for linear in (block.attention.output_projection, block.mlp.output_projection):
                fill_normal(linear.weight, output_std) if not starts_as_identity else linear.weight.zero_()
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif parameter.ndim == 1:  # the weight of a norm
                parameter.fill_(1.0)
        for module in self.modules():
            if isinstance(module, ValueEmbedding):  # no larger than the variation of the layers' own values
                fill_normal(module.weight, config.width**-0.5 if starts_as_identity else INIT_STD)
            elif isinstance(module, LearnedScalars):
                module.weight.copy_(torch.tensor(module.initial_values))
            elif isinstance(module, Gate):
                module.weight.zero_()

    def forward(
        self,
        tokens: Tensor,
        document_ids: Tensor | None = None,
        cache_batch: CacheBatch | None = None,
        tree: TreeMask | None = None,
    ) -> Tensor:
        """Computes the hidden states after the final norm.

        Args:
            tokens: (B, T) int64.
            document_ids: (B, T), attention stays within equal numbers; None: one document a row.
            cache_batch: keys and values of the tokens before, extended by these at each row's own length; the caller
                then advances the lengths.
            tree: rows that fork; without a cache.

        Returns:
            (B, T, C) in compute_dtype.
        """
        training = torch.is_grad_enabled() and cache_batch is None  # only then is compilation worth its time
        embedding_norm: Callable[[Tensor], Tensor] = self.embedding_norm
        norm: Callable[[Tensor], Tensor] = self.norm
        if not training:
            embedding_norm, norm = self.embedding_norm.forward, self.norm.forward

        def embed(tokens: Tensor) -> Tensor:
            return embedding_norm(self.embedding(tokens).to(self.compute_dtype))

        x = embed(tokens)
        if self.smear is not None:
            x = self.smear(x, shift_embeddings(x, tokens, embed, document_ids, cache_batch, tree))
        if tree is not None:
            assert cache_batch is None, "a row that forks is read without a cache"
            x, rotary = self.positions(x, tree.positions)
        elif cache_batch is None:
            x, rotary = self.positions(x, slice(0, tokens.shape[1]))
        else:
            x, rotary = self.positions(x, cache_batch.positions.clamp(max=self.config.context - 1))
        window_sizes = [self.config.layer_window_size(layer) for layer in range(self.config.depth)]
        masks: Mapping[int | None, Tensor | BlockMask | None] = dict.fromkeys(window_sizes)
        if self.use_block_masks and training and tree is None:
            masks = make_block_masks(document_ids, tokens.shape[1], tokens.device, window_sizes)
            document_ids = None
        elif cache_batch is None and (
            self.use_dense_masks or (not uses_blockwise_attention(x) and (document_ids is not None or tree is not None))
        ):
            masks = dict.fromkeys(window_sizes, make_attention_mask(x, document_ids, tree))
        embeddings, streams = x if self.config.residual_scalars else None, list[Tensor | None]()
        for block, window_size in zip(self.blocks, window_sizes, strict=True):
            if embeddings is not None:  # a node for each layer: gradients are added in pairs, in one order on any ranks
                embeddings = embeddings.view_as(embeddings)
            x = x if self.skip_connections is None else self.skip_connections(x, streams)
            run: Callable[..., Tensor] = block if training else block.forward
            if training and self.recompute:  # nothing in a block is random
                run = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
            x = run(x, rotary, document_ids, cache_batch, tree, tokens, embeddings, masks[window_size])
        return norm(x if self.skip_connections is None else self.skip_connections(x, streams))

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """hidden_states (..., C) -> logits (..., V) in fp32, soft-capped where the model has a cap."""
        return self.apply_softcap(apply_linear(hidden_states, self.head).float())

    def apply_softcap(self, logits: Tensor) -> Tensor:
        """Returns cap * tanh((logits + shift) / cap) of logits (..., V), or the logits where the model has no cap."""
        cap, shift = self.config.logit_softcap, self.config.logit_shift
        return cap * torch.tanh((logits + shift if shift else logits) / cap) if cap else logits

    def count_parameters(self) -> int:
        """Returns the number of trained values; d20 with 65,536 entries has 560,988,160."""
        return sum(p.numel() for p in self.parameters())
