"""The decoder: embedding, norm, blocks of attention and ReLU^2 feed-forward, norm, untied head, soft-capped logits.

Tensor for tensor the architecture that Hugging Face transformers ships as `NanoChatForCausalLM` (`hf_names` gives
the renaming). Weights are fp32; the products run in `compute_dtype`. The model knows neither loss nor optimizer, and
training never asks it for logits of a whole batch: `logprob.py` takes the hidden states.

B batch, T time, C width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fledgling.model.attention import Attention, project, rotary_table
from fledgling.model.cache import KVCache
from fledgling.model.config import ModelConfig
from fledgling.model.norm import rms_norm


class FeedForward(nn.Module):
    """Two matrices around ReLU^2 (Primer, So et al. 2021, arXiv 2109.08668)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.hidden, bias=False)
        self.fc2 = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return project(project(x, self.fc1).relu().square(), self.fc2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attention = Attention(config, layer)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        documents: Tensor | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention(rms_norm(x, self.eps), rotary, documents, cache, positions)
        return x + self.mlp(rms_norm(x, self.eps))


class Transformer(nn.Module):
    """The whole decoder; `forward` ends at the normalized hidden states, `logits` is the head."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        cos, sin = rotary_table(config, self.embedding.weight.device)
        self.register_buffer("cos", cos, persistent=False)  # (context, D/2)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Fill the weights: matrices uniform with standard deviation C^-1/2, outputs of a block and the head zero.

        A fresh model is thus the identity on its residual stream and predicts the uniform distribution. The values
        depend on the seed and the shapes alone, drawn on the CPU in a fixed order.
        """
        generator = torch.Generator().manual_seed(seed)
        self.embedding.weight.copy_(torch.randn(self.embedding.weight.shape, generator=generator))
        self.head.weight.zero_()
        bound = (3.0 / self.config.width) ** 0.5  # of a uniform distribution with variance 1 / C
        for block in self.blocks:
            inward = (block.attention.q_proj, block.attention.k_proj, block.attention.v_proj, block.mlp.fc1)
            for linear in inward:
                draw = torch.rand(linear.weight.shape, generator=generator)
                linear.weight.copy_((2 * draw - 1) * bound)
            block.attention.o_proj.weight.zero_()
            block.mlp.fc2.weight.zero_()

    def forward(self, tokens: Tensor, documents: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Hidden states after the final norm.

        tokens (B, T) int64; documents (B, T): attention stays where the number is the same; cache: keys and values of
        the tokens before, extended by these at each row's own length (the caller then calls `cache.advance`).
        Returns (B, T, C) in compute_dtype.
        """
        x = self.embedding(tokens).to(self.compute_dtype)
        x = rms_norm(x, self.config.norm_eps)
        positions = None
        if cache is None:
            rotary = self._rotary(slice(0, tokens.shape[1]))
        else:
            cache.reserve(tokens.shape[1])
            positions = cache.positions(tokens.shape[1])
            rotary = self._rotary(positions.clamp(max=self.config.context - 1))
        training = torch.is_grad_enabled() and cache is None  # only then is a compiled block worth its compilation
        for block in self.blocks:
            x = (block if training else block.forward)(x, rotary, documents, cache, positions)
        return rms_norm(x, self.config.norm_eps)

    def _rotary(self, index: slice | Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos[index].to(self.compute_dtype), self.sin[index].to(self.compute_dtype)
        if cos.ndim == 2:
            return cos[None, None], sin[None, None]  # (1, 1, T, D/2)
        return cos[:, None], sin[:, None]  # (B, 1, T, D/2)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., C) -> soft-capped logits (..., V) in fp32."""
        cap = self.config.softcap
        return cap * torch.tanh(project(hidden, self.head).float() / cap)

    def parameter_count(self) -> int:
        """Number of trained values; d20 with 65,536 entries has 560,988,160."""
        return sum(p.numel() for p in self.parameters())


def hf_names(name: str) -> str:
    """The name in `NanoChatForCausalLM` of the tensor that is called `name` here."""
    if name == "head.weight":
        return "lm_head.weight"
    name = name.replace("embedding.", "embed_tokens.").replace("blocks.", "layers.")
    return "model." + name.replace(".attention.", ".self_attn.")
