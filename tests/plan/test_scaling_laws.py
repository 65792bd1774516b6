"""Tests published laws: each gives its paper's optimum, exponents follow from the formulas, losses are consistent."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.config import ModelConfig, UserError
from fledgling.plan import scaling_laws
from fledgling.plan.parameters import count_matrix_parameters, count_parameters
from fledgling.plan.scaling_laws import LAWS, ChinchillaLoss

GOPHER = 5.76e23


def exponent(law: scaling_laws.ScalingLaw, index: int, C: float = 1e20) -> float:
    return math.log10(law.optimum(10 * C)[index] / law.optimum(C)[index])


@pytest.mark.parametrize(
    ("name", "N", "D", "within"),
    [
        ("chinchilla-1", 67e9, 1.5e12, 0.07),
        ("chinchilla-2", 63e9, 1.5e12, 0.03),
        ("chinchilla-3-unrounded", 40e9, 2.4e12, 0.02),  # the paper's own approach 3: 40B
        ("chinchilla-3", 32e9, 3.0e12, 0.02),  # and what its printed digits give
        ("refit-2024", 72e9, 1.33e12, 0.02),
    ],
)
def test_the_optimum_of_each_law_is_the_published_one_at_the_chinchilla_budget(name, N, D, within):
    optimum = LAWS[name].optimum(GOPHER)
    assert optimum == (pytest.approx(N, rel=within), pytest.approx(D, rel=within))
    assert 6 * optimum[0] * optimum[1] == pytest.approx(GOPHER, rel=0.06)


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [
        ("kaplan", 0.73, 0.27),
        ("chinchilla-1", 0.50, 0.50),
        ("chinchilla-2", 0.49, 0.51),
        ("chinchilla-3-unrounded", 0.46, 0.54),
        ("refit-2024", 0.513, 0.487),
        ("nanochat", 0.54, 0.49),
    ],
)
def test_the_exponents_of_the_optimum_are_the_published_ones(name, a, b):
    law = LAWS[name]
    assert (exponent(law, 0), exponent(law, 1)) == (pytest.approx(a, abs=0.006), pytest.approx(b, abs=0.006))


def test_limits_and_exponents_of_kaplan_are_the_published_ones():
    kaplan = LAWS["kaplan"].surface
    slope_N = math.log10(kaplan.loss(1e9, 1e30) / kaplan.loss(1e10, 1e30))
    slope_D = math.log10(kaplan.loss(1e30, 1e9) / kaplan.loss(1e30, 1e10))
    assert (slope_N, slope_D) == (pytest.approx(0.076, abs=1e-4), pytest.approx(0.103, abs=1e-4))
    fall = math.log10(LAWS["kaplan"].predict(1e20)["nats_per_token"] / LAWS["kaplan"].predict(1e21)["nats_per_token"])
    assert fall == pytest.approx(0.050)
    assert LAWS["kaplan"].predict(scaling_laws.PF_DAY)["parameters"] == pytest.approx(1.3e9)


@given(
    E=st.floats(0.1, 3),
    A=st.floats(10, 1e4),
    alpha=st.floats(0.1, 1),
    B=st.floats(10, 1e4),
    beta=st.floats(0.1, 1),
    C=st.floats(1e12, 1e25),
)
def test_the_optimum_is_a_minimum(E, A, alpha, B, beta, C):
    law = ChinchillaLoss(E, A, alpha, B, beta)
    N, D = law.optimum(C)
    assert pytest.approx(C) == 6 * N * D
    least = law.loss(N, D)
    assert all(law.loss(N * k, D / k) >= least * (1 - 1e-12) for k in (0.5, 0.9, 1.1, 2))
    assert law.scaled(2).loss(N, D) == pytest.approx(2 * least)
    assert law.scaled(2).optimum(C) == (pytest.approx(N), pytest.approx(D))


def test_the_law_of_nanochat_gives_its_bits_per_byte():
    for C, bits in ((1e18, 0.8972), (2e18, 0.8616), (5e18, 0.8293), (1e19, 0.7999)):
        assert LAWS["nanochat"].predict(C)["bits_per_byte"] == pytest.approx(bits, rel=0.007)
    prediction = LAWS["nanochat"].predict(10**18.5, 4.5)
    assert prediction["tokens_per_parameter"] == pytest.approx(10.5)
    assert prediction["nats_per_token"] == pytest.approx(prediction["bits_per_byte"] * 4.5 * math.log(2))


def test_unit_conversions_are_inverse():
    assert scaling_laws.nats_to_bpb(math.log(2) * 4, 4) == pytest.approx(1)
    assert scaling_laws.bpb_to_nats(scaling_laws.nats_to_bpb(2.5, 4.8), 4.8) == pytest.approx(2.5)
    refit = LAWS["refit-2024"]
    assert refit.loss_in_nats(72e9, 1.3e12) == pytest.approx(refit.surface.loss(72e9, 1.3e12))
    assert LAWS["chinchilla-1"].loss_in_nats(1e9, 1e9) is None


def test_parameter_counts_are_those_of_the_laws():
    d20 = ModelConfig(depth=20, context=2048, preset="nanochat-2025").resolve(65_536)
    counts = scaling_laws.parameter_counts(count_parameters(d20))
    assert counts[scaling_laws.ALL_PARAMETERS] == 560_988_160
    assert counts[scaling_laws.MATRICES] == count_matrix_parameters(d20) == 12 * 20 * 1280**2
    assert (
        counts[scaling_laws.WITH_HEAD]
        == counts[scaling_laws.WITHOUT_EMBEDDINGS]
        == count_matrix_parameters(d20) + 65_536 * 1280
    )


def test_value_embeddings_are_embeddings():
    plain, more = (
        scaling_laws.parameter_counts(count_parameters(ModelConfig(1024, 2, 64, 2, preset="nanochat-2025", **fields)))
        for fields in ({}, {"value_embeddings": 1})
    )
    assert more.pop(scaling_laws.ALL_PARAMETERS) == plain.pop(scaling_laws.ALL_PARAMETERS) + 2 * 1024 * 64
    assert more == plain


@pytest.mark.parametrize("C", [0, -1, math.inf, math.nan])
def test_an_invalid_budget_is_rejected(C):
    with pytest.raises(UserError, match=r"budget \S+: expected a number above 0 and at most 1e\+40, such as 1e18"):
        LAWS["kaplan"].optimum(C)


def test_an_unknown_law_is_rejected():
    assert scaling_laws.find_law("kaplan") is LAWS["kaplan"]
    with pytest.raises(UserError, match='did you mean "chinchilla-1"'):
        scaling_laws.find_law("chinchila-1")
