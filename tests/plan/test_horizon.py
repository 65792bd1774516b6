"""Tests the horizon: the published run, the growth of the batch, pinned values."""

import pytest

from fledgling.config import UserError, load_recipe
from fledgling.plan import flops
from fledgling.plan.derive import find_run_size
from fledgling.plan.horizon import choose_batch_tokens, compute_horizon
from fledgling.plan.parameters import count_parameters

from .models import config


def test_the_horizon_is_that_of_the_published_run():
    d20 = config(20)
    assert (d20.width, d20.heads) == (1_280, 10)
    assert count_parameters(d20)["total"] == 560_988_160 == 2 * 65_536 * 1_280 + 12 * 20 * 1_280**2
    assert flops.training_flops_per_token(d20) == 3_491_758_080
    length = compute_horizon(d20)
    assert (length.batch_tokens, length.steps, length.tokens) == (524_288, 21_400, 11_219_763_200)
    assert flops.training_flops_per_token(d20) * length.tokens == pytest.approx(3.917670e19, rel=1e-6)


def test_value_embeddings_make_no_run_longer():
    default = config(20, preset="nanochat-2026")
    assert count_parameters(default)["total"] == 1_399_852_234
    assert compute_horizon(default) == compute_horizon(config(20))
    pretrain = load_recipe("quickstart", ["pretrain={}"]).pretrain
    size, plain = (find_run_size(pretrain, one) for one in (default, config(20)))
    assert size.tokens == plain.tokens and size.parameters == pytest.approx(plain.parameters, rel=1e-4)


def test_the_batch_grows_with_the_run_and_can_be_pinned():
    assert choose_batch_tokens(11_219_763_200) == 524_288
    assert choose_batch_tokens(10**8) < choose_batch_tokens(10**9) < choose_batch_tokens(10**12)
    assert compute_horizon(config(4), batch_tokens=4_096, steps=7).tokens == 7 * 4_096
    with pytest.raises(UserError, match="whole rows"):
        compute_horizon(config(4), batch_tokens=4_095)
