"""Connections past the blocks: the embedded token and earlier outputs, mixed into the stream by learned scalars.

    residual scalars   a block reads a x + b x0, with x0 the embedded token: two numbers for each layer
    skip scalars       block L - 2 - j reads x + s_j y_j, with y_j the output of block j: connections over the middle
    back-out           the last norm reads x - r y, with y the output of the middle block: what only the middle needed

With the initial a = 1, b = s = 0 they change nothing; the initial r is .2.

Sources: the GPT-2 speed-runs (Jordan et al. 2024, modded-nanogpt: x0 lambdas, U-net skips, back-out); long skips are of
Bao et al. 2022, arXiv 2209.12152.

B batch, T time, C width, L layers.
"""

from __future__ import annotations

from torch import Tensor, nn

from fledgling.config import ModelConfig
from fledgling.model.scalars import LearnedScalars

BACK_OUT = 0.2  # initial


def make_residual(config: ModelConfig) -> LearnedScalars | None:
    """Returns the scalars (a, b) of a block, or None."""
    return LearnedScalars(1.0, 0.0) if config.residual_scalars else None


def mix_embeddings(scalars: LearnedScalars, x: Tensor, embeddings: Tensor | None) -> Tensor:
    """x, embeddings (B, T, C) -> a x + b embeddings."""
    assert embeddings is not None, "a model with residual scalars hands on its embedded tokens"
    a, b = scalars.weight.to(x.dtype)
    return a * x + b * embeddings


class SkipConnections(nn.Module):
    """Skip scalars and back-out. It is called before every block, and once after the last."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.depth, self.num_skips = config.depth, config.num_skips
        self.skips = LearnedScalars(*[0.0] * self.num_skips) if self.num_skips else None
        self.back_out = LearnedScalars(BACK_OUT) if config.back_out else None

    def forward(self, x: Tensor, streams: list[Tensor | None]) -> Tensor:
        """Returns what is read next, from the stream x (B, T, C) after as many blocks as `streams` has entries.

        streams: x of the earlier calls, None where it is not needed; x is added.
        """
        layer, middle = len(streams), self.depth // 2
        is_needed = 1 <= layer <= self.num_skips or (self.back_out is not None and layer == middle)
        streams.append(x if is_needed else None)
        skip = self.depth - 2 - layer
        if self.skips is not None and 0 <= skip < self.num_skips:
            x = x + self.skips.weight[skip].to(x.dtype) * as_new_node(streams[skip + 1])
        if self.back_out is not None and layer == self.depth:
            x = x - self.back_out.weight.to(x.dtype) * as_new_node(streams[middle])
        return x


def as_new_node(x: Tensor | None) -> Tensor:
    """Returns x (B, T, C) as an autograd node of its own: gradients are added in one order on any number of ranks."""
    assert x is not None
    return x.view_as(x)


def make_skip_connections(config: ModelConfig) -> SkipConnections | None:
    """Returns the module that `config.skip_scalars` and `config.back_out` select, or None."""
    return SkipConnections(config) if config.num_skips or config.back_out else None
