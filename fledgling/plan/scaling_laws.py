"""Published scaling laws as values: the loss L(N, D) and the optimal (N, D) for a budget of C FLOPs.

A law is a surface (a loss over parameters N and tokens D), a frontier (the optimal N and D along C), or both; all laws
have the same methods. Losses are nats per token unless a law says bits per byte; `nats_to_bpb` and `bpb_to_nats`
convert, given the bytes per token.

A law states which N it counts (`counts`): the same runs give N_opt ~ C^0.37 or C^0.70 for one or another count.
C = 6 N D throughout; the FLOPs of attention are ignored, as in the papers.

`fledgling.scaling.fits` fits our own runs into these same types. `fledgling.plan.critical_batch` describes how the loss
falls with steps and batch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from fledgling.config import UserError, did_you_mean, require_number

PF_DAY = 1e15 * 86_400  # FLOPs; the unit of compute in Kaplan et al.
MOST_FLOPS = 1e40  # of a budget: more is a slip of the hand
BYTES_PER_TOKEN = 4.8  # English web text with 65,536 entries, the default

# The usual ways of counting N. Kaplan's 12 L C^2 are the matrices; with an untied head and neither positions nor norm
# weights, `WITHOUT_EMBEDDINGS` and `WITH_HEAD` are the same number.
ALL_PARAMETERS = "all parameters"
WITHOUT_EMBEDDINGS = "without embeddings"
WITH_HEAD = "matrices + head"
MATRICES = "matrices"


def nats_to_bpb(nats: float, bytes_per_token: float) -> float:
    """Returns a loss in nats per token as bits per byte of text."""
    return nats / (math.log(2) * bytes_per_token)


def bpb_to_nats(bits_per_byte: float, bytes_per_token: float) -> float:
    """Returns a loss in bits per byte as nats per token: the inverse of `nats_to_bpb`."""
    return bits_per_byte * math.log(2) * bytes_per_token


# ---- functional forms ----


@dataclass(frozen=True)
class PowerLaw:
    """y = scale x^exponent."""

    scale: float
    exponent: float

    def __call__(self, x: float) -> float:
        return self.scale * x**self.exponent


@dataclass(frozen=True)
class ChinchillaLoss:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2); losses in any one unit."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, N: float, D: float) -> float:
        """Returns the loss of N parameters after D tokens."""
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    def optimum(self, C: float) -> tuple[float, float]:
        """Returns the (N, D) of least loss with 6 N D = C (Hoffmann et al. 2022, equation 4)."""
        exponent_sum = self.alpha + self.beta
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / exponent_sum)
        N = G * (C / 6) ** (self.beta / exponent_sum)
        return N, C / (6 * N)

    def scaled(self, factor: float) -> ChinchillaLoss:
        """Returns the same surface in another unit: every loss times `factor`."""
        return replace(self, E=self.E * factor, A=self.A * factor, B=self.B * factor)


@dataclass(frozen=True)
class KaplanLoss:
    """L(N, D) = ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D (Kaplan et al. 2020, equation 1.5)."""

    Nc: float
    alpha_N: float
    Dc: float
    alpha_D: float

    def loss(self, N: float, D: float) -> float:
        """Returns the loss, in nats per token, of N parameters on D tokens, stopped before overfitting."""
        return ((self.Nc / N) ** (self.alpha_N / self.alpha_D) + self.Dc / D) ** self.alpha_D


@dataclass(frozen=True)
class Frontier:
    """The optimal N and D for a budget as two power laws of C, and the loss there if known."""

    N: PowerLaw
    D: PowerLaw
    loss: PowerLaw | None = None

    def optimum(self, C: float) -> tuple[float, float]:
        """Returns (N, D) for C FLOPs."""
        return self.N(C), self.D(C)


@dataclass(frozen=True)
class ScalingLaw:
    """A scaling law with its name, its source and what it counts as N.

    surface gives losses, frontier gives optima; in_bits_per_byte: losses are bits per byte, not nats per token.
    """

    name: str
    source: str
    counts: str
    frontier: ChinchillaLoss | Frontier
    surface: ChinchillaLoss | KaplanLoss | None = None
    in_bits_per_byte: bool = False

    def optimum(self, C: float) -> tuple[float, float]:
        """Returns the compute-optimal (N, D) for C FLOPs. Raises UserError for an invalid budget."""
        return self.frontier.optimum(check_budget(C))

    def loss_in_nats(self, N: float, D: float, bytes_per_token: float = BYTES_PER_TOKEN) -> float | None:
        """Returns L(N, D) in nats per token; None if the law has no surface."""
        if self.surface is None:
            return None
        loss = self.surface.loss(N, D)
        return bpb_to_nats(loss, bytes_per_token) if self.in_bits_per_byte else loss

    def predict(self, C: float, bytes_per_token: float = BYTES_PER_TOKEN) -> dict[str, Any]:
        """Returns the law's optimum for C FLOPs: parameters, tokens, their ratio, and the loss in both units."""
        N, D = self.optimum(C)
        loss = self.loss_in_nats(N, D, bytes_per_token)
        if (
            isinstance(self.frontier, Frontier) and self.frontier.loss
        ):  # measured along the frontier: closer to the runs
            loss = self.frontier.loss(C)
            loss = bpb_to_nats(loss, bytes_per_token) if self.in_bits_per_byte else loss
        return {
            "law": self.name,
            "source": self.source,
            "counts": self.counts,
            "parameters": N,
            "tokens": D,
            "tokens_per_parameter": D / N,
            "nats_per_token": loss,
            "bits_per_byte": None if loss is None else nats_to_bpb(loss, bytes_per_token),
        }


def check_budget(C: float, name: str = "budget") -> float:
    """Returns C; raises UserError, which calls it `name`, if it is not a number of FLOPs."""
    return require_number(name, C, MOST_FLOPS, "1e18")


def power_law_through(first: tuple[float, float], last: tuple[float, float]) -> PowerLaw:
    """Returns the power law through two points (x, y)."""
    exponent = math.log(last[1] / first[1]) / math.log(last[0] / first[0])
    return PowerLaw(first[1] / first[0] ** exponent, exponent)


# ---- published laws ----

# Kaplan et al. 2020, arXiv 2001.08361. Table 5; nats a token of WebText2.
KAPLAN_C = PowerLaw((3.1e8 * PF_DAY) ** 0.050, -0.050)  # L(C_min): compute-optimal

_KAPLAN = ScalingLaw(
    "kaplan",
    "Kaplan et al. 2020, tables 2 and 6",
    MATRICES,
    Frontier(PowerLaw(1.3e9 / PF_DAY**0.73, 0.73), PowerLaw(2e10 / PF_DAY**0.27, 0.27), KAPLAN_C),
    KaplanLoss(Nc=6.4e13, alpha_N=0.076, Dc=1.8e13, alpha_D=0.103),
)

# Hoffmann et al. 2022, arXiv 2203.15556. Approaches 1 and 2 publish exponents and tables of optima: the power
# laws below pass through the first and the last row of tables 3 and A3.
_CHINCHILLA_1 = ScalingLaw(
    "chinchilla-1",
    "Hoffmann et al. 2022, approach 1 (table 3)",
    ALL_PARAMETERS,
    Frontier(
        power_law_through((1.92e19, 400e6), (1.30e28, 10e12)), power_law_through((1.92e19, 8.0e9), (1.30e28, 216.2e12))
    ),
)
_CHINCHILLA_2 = ScalingLaw(
    "chinchilla-2",
    "Hoffmann et al. 2022, approach 2 (table A3)",
    ALL_PARAMETERS,
    Frontier(
        power_law_through((1.84e19, 400e6), (1.75e28, 10e12)), power_law_through((1.84e19, 7.7e9), (1.75e28, 292.0e12))
    ),
)
_PRINTED = ChinchillaLoss(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
_UNROUNDED = ChinchillaLoss(E=1.69337368, A=406.401018, alpha=0.33917084, B=410.722827, beta=0.2849083)
REFIT = ChinchillaLoss(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)

# nanochat's own isoFLOP fits publish exponents, the ratio of about 10.5 tokens a parameter, and bits per byte at
# budgets from 1e18 to 1e19: the power laws are anchored at the middle of those budgets.
_MIDDLE = 10**18.5
_NANOCHAT_N = math.sqrt(_MIDDLE / (6 * 10.5))
_NANOCHAT = Frontier(
    PowerLaw(_NANOCHAT_N / _MIDDLE**0.54, 0.54),
    PowerLaw(10.5 * _NANOCHAT_N / _MIDDLE**0.49, 0.49),
    power_law_through((1e18, 0.8972), (1e19, 0.7999)),
)

LAWS = {
    law.name: law
    for law in (
        _KAPLAN,
        _CHINCHILLA_1,
        _CHINCHILLA_2,
        ScalingLaw("chinchilla-3", "Hoffmann et al. 2022, approach 3 as printed", ALL_PARAMETERS, _PRINTED, _PRINTED),
        ScalingLaw(
            "chinchilla-3-unrounded", "approach 3, digits of the paper's source", ALL_PARAMETERS, _UNROUNDED, _UNROUNDED
        ),
        ScalingLaw("refit-2024", "Besiroglu et al. 2024, arXiv 2404.10102", ALL_PARAMETERS, REFIT, REFIT),
        ScalingLaw(
            "nanochat", "nanochat's isoFLOP fits, 1e18 to 1e19 FLOPs", WITH_HEAD, _NANOCHAT, in_bits_per_byte=True
        ),
    )
}


def find_law(name: str) -> ScalingLaw:
    """Returns the published law with this name; raises UserError for an unknown name."""
    if name not in LAWS:
        hint = did_you_mean(name, LAWS) or f": there are {', '.join(LAWS)}"
        raise UserError(f'unknown scaling law "{name}"{hint}')
    return LAWS[name]


def parameter_counts(parameters: dict[str, int]) -> dict[str, int]:
    """Returns N in each of the usual ways from the components of `fledgling.plan.parameters.count_parameters`."""
    embeddings = parameters["embedding"] + parameters.get("positions", 0) + parameters.get("value_embeddings", 0)
    matrices = parameters["attention"] + parameters["feed_forward"]
    return {
        ALL_PARAMETERS: parameters["total"],
        WITHOUT_EMBEDDINGS: parameters["total"] - embeddings,
        WITH_HEAD: matrices + parameters["head"],
        MATRICES: matrices,
    }
