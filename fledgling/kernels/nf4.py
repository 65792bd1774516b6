"""NF4: 4 bits whose levels are quantiles of the normal distribution, for frozen weights under an adapter.

A group of 64 values is divided by its largest magnitude; a value becomes the nearest of 16 levels, which lie so that
normally distributed values use them about equally: seven below 0, 0 itself, eight above, from -1 to 1.

Source: QLoRA, Dettmers et al. 2023, arXiv 2305.14314, section 3 and appendix E; the offset is that of its reference
code, which makes the outermost quantiles finite.

N rows, K columns.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fledgling.kernels.format import interleave

GROUP_SIZE = 64
OFFSET = 0.9677083  # the outermost quantile: the mean of 1 - 1/30 and 1 - 1/32


@cache
def nf4_levels() -> tuple[float, ...]:
    """Returns the 16 levels, increasing."""

    def quantiles(count: int) -> Tensor:
        return torch.special.ndtri(torch.linspace(OFFSET, 0.5, count + 1, dtype=torch.float64)[:-1])

    levels = torch.cat((-quantiles(7), torch.zeros(1, dtype=torch.float64), quantiles(8))).sort().values
    return tuple((levels / levels.max()).tolist())


def quantize_nf4(weight: Tensor, group_size: int = GROUP_SIZE) -> tuple[Tensor, Tensor]:
    """Quantizes a matrix (N, K).

    Returns:
        values: uint8 (N, K / 2).
        scales: bf16 (N, K / group_size).
    """
    groups = weight.detach().float().reshape(-1, group_size)
    scale = groups.abs().amax(1, keepdim=True).to(torch.bfloat16).float()
    levels = torch.tensor(nf4_levels(), dtype=torch.float32, device=weight.device)
    midpoints = (levels[1:] + levels[:-1]) / 2
    index = torch.bucketize((groups / scale).nan_to_num_(0.0), midpoints, out_int32=True).to(torch.uint8)
    return interleave(index.view(weight.shape)), scale.to(torch.bfloat16).view(len(weight), -1)
