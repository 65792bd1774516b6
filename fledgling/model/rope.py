"""RoPE's frequencies, also beyond the context that they were trained for.

    linear   all frequencies divided by the factor s         Chen et al. 2023, arXiv 2306.15595
    ntk      theta becomes theta s^(d / (d - 2)), so that the slowest frequency is divided by s and the fastest stays
             (bloc97 2023, "NTK-aware scaled RoPE")
    yarn     between the two by how often a frequency turns in the trained context, and cosines and sines times
             0.1 ln s + 1                                    Peng et al. 2023, arXiv 2309.00071
    llama3   slow frequencies divided by s, fast ones unchanged, a ramp between (Llama 3.1's reference code)

d values of a head are rotated, in pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fledgling.config import ModelConfig


def make_frequencies(config: ModelConfig, device: torch.device | str = "cpu") -> tuple[Tensor, float]:
    """Returns the angles of one position (d / 2,) in fp32, and the factor of cosines and sines."""
    base, width, factor = config.rope_base, config.rotary_width, config.rope_factor
    if config.rope_type == "ntk" and width > 2:
        base = base * factor ** (width / (width - 2))
    frequencies = plain_frequencies(base, width, device)
    if config.rope_type == "linear":
        return frequencies / factor, 1.0
    if config.rope_type == "llama3":
        return _llama3_frequencies(frequencies, config), 1.0
    if config.rope_type == "yarn":
        scale = config.rope_attention_factor or 0.1 * math.log(factor) + 1.0
        return _yarn_frequencies(frequencies, config), scale
    return frequencies, 1.0


def plain_frequencies(base: float, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns base^(-2 i / d) for the d / 2 pairs, fp32 (Su et al. 2021, arXiv 2104.09864)."""
    pairs = torch.arange(0, width, 2, dtype=torch.float32, device=device)
    return 1.0 / base ** (pairs / width)


def _llama3_frequencies(frequencies: Tensor, config: ModelConfig) -> Tensor:
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    turns = config.trained_context * frequencies / (2 * math.pi)  # in the trained context
    share = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # of the frequency that stays
    return frequencies * (share + (1 - share) / config.rope_factor)


def _yarn_frequencies(frequencies: Tensor, config: ModelConfig) -> Tensor:
    width, context = config.rotary_width, config.trained_context

    def find_correction_dim(turns: float) -> float:
        """Returns the pair, as a real number, that turns so often in the trained context."""
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_base))

    low = max(math.floor(find_correction_dim(config.rope_beta_fast)), 0)
    high = min(math.ceil(find_correction_dim(config.rope_beta_slow)), width - 1)
    pairs = torch.arange(width // 2, dtype=torch.float32, device=frequencies.device)
    share = ((pairs - low) / (high - low if high != low else 0.001)).clamp(0.0, 1.0)  # of the divided frequency
    return frequencies * (1 - share) + frequencies / config.rope_factor * share
