"""Divergences of tokens and their gradients, next to autograd through the formulas on whole tables."""

from dataclasses import replace

import pytest
import torch

from fledgling.train.distill.divergence import (
    EAGER_DIVERGENCES,
    Comparison,
    DivergenceSum,
    compile_divergences,
    token_divergence,
    top_k_divergence,
    top_k_logprobs,
)
from tests.invariants.test_one_update import CONFIG

CAPS = {"capped": (15.0, 0.0), "capped and shifted": (5.0, 0.7), "plain": (0.0, 0.0)}


def plain_logits(z, config, temperature):
    """The logits over the temperature, as the model computes them."""
    cap, shift = config.logit_softcap, config.logit_shift
    return (cap * torch.tanh((z + shift) / cap) if cap else z) / temperature


@pytest.mark.parametrize("of_model", CAPS)
@pytest.mark.parametrize("k", [None, 1, 3, 8])
def test_divergence_and_gradient_are_those_of_autograd(of_model, k):
    configs = [replace(CONFIG, logit_softcap=cap, logit_shift=shift) for cap, shift in (CAPS[of_model], (4.0, 0.1))]
    draw = torch.Generator().manual_seed(0)
    z, teacher_z = (3 * torch.randn(5, 9, generator=draw)).requires_grad_(), 3 * torch.randn(5, 9, generator=draw)
    log_q, log_p = (plain_logits(x, c, 1.7).log_softmax(-1) for x, c in zip((z, teacher_z), configs, strict=True))
    if k is None:
        values, _, gradient = token_divergence(z.detach(), teacher_z, Comparison(*configs, 1.7))
        expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    else:
        ids = log_p.topk(k).indices
        log_p, log_q = top_k_logprobs(log_p, ids), top_k_logprobs(log_q, ids)
        values, _, gradient = top_k_divergence(z.detach(), ids, log_p, Comparison(configs[0], None, 1.7))
        expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    expected.sum().backward()
    assert torch.allclose(values, expected, atol=1e-5)
    assert torch.allclose(gradient, z.grad, atol=1e-6)


def test_all_but_one_stored_tokens_are_the_whole_divergence_and_fewer_a_lower_bound():
    draw = torch.Generator().manual_seed(0)
    z, teacher_z = torch.randn(2, 5, 9, generator=draw).unbind(0)
    config = replace(CONFIG, logit_softcap=0.0)
    whole = token_divergence(z, teacher_z, Comparison(config, config))[0]
    for k in (8, 3):
        ids = teacher_z.topk(k).indices
        found = top_k_divergence(z, ids, top_k_logprobs(teacher_z, ids), Comparison(config, None))[0]
        assert torch.allclose(found, whole, atol=1e-6) if k == 8 else (found < whole).all() and (found > 0).all()
    assert torch.allclose(top_k_logprobs(teacher_z, ids).exp().sum(-1), torch.ones(5))


def test_stored_tokens_that_are_certain_give_finite_values():
    """All others together have a probability that fp32 does not have, for the model and for its teacher."""
    config = replace(CONFIG, logit_softcap=0.0)
    z, ids = torch.tensor([[300.0, 0.0, 0.0, 0.0]]), torch.tensor([[0]])
    for teacher_z in (z, -z):
        found = top_k_divergence(z, ids, top_k_logprobs(teacher_z, ids), Comparison(config, None))
        assert all(torch.isfinite(each).all() for each in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_chunks_add_up_and_targets_alone_count(dtype, monkeypatch):
    """Three chunks of hidden states; the gradients are those of one, in 16 bits up to their rounding."""
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(10, 6, generator=draw).to(dtype).requires_grad_()
    head = (0.5 * torch.randn(8, 6, generator=draw)).requires_grad_()
    teacher_z, weights = torch.randn(10, 8, generator=draw).to(dtype), (torch.arange(10) % 3 > 0).float()

    def run(rows):
        monkeypatch.setattr("fledgling.model.logprob.head_chunk_tokens", lambda vocab_size, device: rows)
        hidden.grad = head.grad = None

        def compare(z, part):
            values, _, g = EAGER_DIVERGENCES.tokens(z, teacher_z[part], Comparison(CONFIG, CONFIG))
            return values, g, values

        total, divergence = DivergenceSum.apply(hidden, head, weights, compare)
        assert divergence == total and not divergence.requires_grad
        (2 * total).backward()
        return total.detach(), hidden.grad.float(), head.grad.clone()

    y = (15 * torch.tanh(hidden.detach().float() @ head.detach().to(dtype).float().T / 15)).requires_grad_()
    assert CONFIG.logit_softcap == 15
    p = (15 * torch.tanh(teacher_z.float() / 15)).log_softmax(-1)
    expected = ((p.exp() * (p - y.log_softmax(-1))).sum(-1) * weights).sum()
    whole, parts = run(10), run(4)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert whole[0].item() == pytest.approx(expected.item(), rel=tolerance)
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance)
    assert not parts[1][0].any() and parts[1][1].any()  # row 0 is no target


def test_compiled_divergences_are_the_eager_ones():
    draw = torch.Generator().manual_seed(2)
    z, teacher_z = torch.randn(2, 12, 40, generator=draw).unbind(0)
    ids = teacher_z.topk(4).indices
    compiled, log_p, how = (
        compile_divergences(z.device),
        top_k_logprobs(teacher_z, ids),
        Comparison(CONFIG, CONFIG, 1.0, 0.3),
    )
    for found, expected in (
        (compiled.tokens(z, teacher_z, how), token_divergence(z, teacher_z, how)),
        (compiled.top_k(z, ids, log_p, how), top_k_divergence(z, ids, log_p, how)),
    ):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
