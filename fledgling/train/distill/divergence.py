"""The divergence of a model's tokens from its teacher's, chunk by chunk, with its gradient in the same pass.

With a weight w below 1 and T = 1 the cross-entropy of the targets shares that pass: its softmax is the model's q.

    y = cap tanh((z + shift) / cap) / T     z a product of the head, T the temperature
    KL(p || q) = sum p (log p - log q)      q = softmax(y), p the teacher's
    dKL / dz   = (q - r) (1 - tanh^2) / T   r = p

Of K stored tokens and of all others as one class, r is p at the K, and elsewhere q p(others) / q(others): the others
share the teacher's probability of all of them as the model divides its own. Nothing is recomputed in the backward
pass, and the logits of a whole batch never exist.

n targets of a chunk, C width, V vocabulary, K stored tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fledgling.config import ModelConfig
from fledgling.model.logprob import FLOAT16_ROW_SUM, add_chunk_gradients, chunk_slices, rational_tanh
from fledgling.runtime.compile_options import compile_options

MAX_EXPONENT = 60.0  # of exp without a maximum: V sums of it are far below the largest fp32


def scale_logits(
    z: Tensor, config: ModelConfig, temperature: float, tanh: Callable[[Tensor], Tensor] = torch.tanh
) -> tuple[Tensor, Tensor | float]:
    """Returns y (n, V) in fp32, and dy/dz, of the products z (n, V) of the head of a model with that configuration."""
    cap, shift = config.logit_softcap, config.logit_shift
    if not cap:
        return z.float() / temperature, 1 / temperature
    t = tanh((z.float() + shift if shift else z.float()) / cap)
    return (cap / temperature) * t, (1 - t * t) / temperature


def exponentiate_rows(y: Tensor, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns e = exp(y - m) of y (n, V), and each row's m + log sum e and sum e, both (n, 1).

    m is the maximum of the row, which is a pass over y; or 0 where |y| has a bound that is not 0 and exp needs none.
    """
    maxima = None if 0 < bound <= MAX_EXPONENT else y.amax(-1, keepdim=True)
    e = torch.exp(y if maxima is None else y - maxima)
    sums = e.sum(-1, keepdim=True)
    return e, sums.log() if maxima is None else maxima + sums.log(), sums


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how: for both divergences."""

    model: ModelConfig
    teacher: ModelConfig | None  # None: its predictions are stored
    temperature: float = 1.0  # T
    weight: float = 1.0  # w, of the divergence

    @property
    def text_weight(self) -> float:
        """The weight of the targets' cross-entropy, where it shares the model's probabilities; 0: it does not."""
        return 1 - self.weight if self.temperature == 1 else 0.0


def token_divergence(
    z: Tensor, teacher_z: Tensor, how: Comparison, tanh: Callable[[Tensor], Tensor] = torch.tanh
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns KL(teacher || model) in nats (n,), log sum exp y (n,), and a gradient for z (n, V).

    KL = sum p (x - y) - log sum exp x + log sum exp y, x the teacher's y: no table of logarithms is made.

    Args:
        z: (n, V), products of the model's head.
        teacher_z: (n, V), of the teacher's.
        how: both models' configurations, T, w.
        tanh: of the cap.

    Returns:
        The gradient is that of w KL + text_weight log sum exp y; fp32 where z is float16, else in the dtype of z.
    """
    assert how.teacher is not None
    y, slope = scale_logits(z, how.model, how.temperature, tanh)
    x = scale_logits(teacher_z, how.teacher, how.temperature, tanh)[0]
    q, log_sum, q_sum = exponentiate_rows(y, how.model.logit_softcap / how.temperature)
    p, teacher_log_sum, p_sum = exponentiate_rows(x, how.teacher.logit_softcap / how.temperature)
    mean = (p * (x - y)).sum(-1, keepdim=True) / p_sum
    g = ((how.weight + how.text_weight) * (q / q_sum) - how.weight * (p / p_sum)) * slope
    return (mean - teacher_log_sum + log_sum).squeeze(-1), log_sum.squeeze(-1), _keep_float16(g, z)


def _keep_float16(g: Tensor, z: Tensor) -> Tensor:
    """Returns gradients in the dtype of z; in fp32 where that is float16, which would lose the smallest."""
    return g if z.dtype == torch.float16 else g.to(z.dtype)


def top_k_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Returns log p of each of `ids` (n, K), and of all other tokens together: (n, K + 1), from logits (n, V).

    That of the others is a sum over them, not 1 less the rest, so that it is exact where it is small.
    """
    total = logits.logsumexp(-1, keepdim=True)
    others = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, ids), others], -1) - total


def top_k_divergence(
    z: Tensor,
    ids: Tensor,
    teacher_logprobs: Tensor,
    how: Comparison,
    tanh: Callable[[Tensor], Tensor] = torch.tanh,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the same as `token_divergence`, of K tokens and all others as one class.

    Args:
        z: (n, V), products of the model's head.
        ids: (n, K), the tokens that the teacher finds most likely.
        teacher_logprobs: (n, K + 1), the result of `top_k_logprobs` for the teacher's logits over the temperature.
        how: the model's configuration, T, w.
        tanh: of the cap.
    """
    y, slope = scale_logits(z, how.model, how.temperature, tanh)
    e, log_sum, e_sum = exponentiate_rows(y, how.model.logit_softcap / how.temperature)
    others = e.scatter(-1, ids, 0.0).sum(-1, keepdim=True).clamp(min=torch.finfo(e.dtype).tiny)  # exact where small
    log_q = torch.cat([y.gather(-1, ids) - log_sum, (others / e_sum).log()], -1)
    p, q = teacher_logprobs.exp(), e / e_sum
    target = (e * (p[:, -1:] / others)).scatter(-1, ids, p[:, :-1])
    g = ((how.weight + how.text_weight) * q - how.weight * target) * slope
    return (p * (teacher_logprobs - log_q)).sum(-1), log_sum.squeeze(-1), _keep_float16(g, z)


def add_targets(z: Tensor, targets: Tensor, log_sums: Tensor, g: Tensor, how: Comparison) -> Tensor:
    """Returns the cross-entropy (n,) times its weight, and adds the rest of its gradient to g (n, V).

    Args:
        z: (n, V), products of the model's head.
        targets: (n,); those of IGNORE_INDEX count as any token, and have no weight.
        log_sums: (n,), of `token_divergence`, whose gradient g is.
        how: with T = 1.
    """
    rows, columns = torch.arange(len(targets), device=z.device), targets.clamp(min=0)
    y, slope = scale_logits(z[rows, columns], how.model, 1.0)
    g[rows, columns] -= how.text_weight * (torch.ones_like(y) * slope).to(g.dtype)
    return how.text_weight * (log_sums - y)


DIVERGENCES = (token_divergence, top_k_divergence)


@dataclass(frozen=True)
class Divergences:
    """The two divergences, as they are or compiled."""

    tokens: Callable[..., tuple[Tensor, Tensor, Tensor]] = token_divergence
    top_k: Callable[..., tuple[Tensor, Tensor, Tensor]] = top_k_divergence


EAGER_DIVERGENCES = Divergences()


def compile_divergences(device: torch.device) -> Divergences:
    """Returns both divergences as fused kernels for `device`, with a tanh of polynomials, which is faster there."""
    smooth = (partial(each, tanh=rational_tanh) for each in DIVERGENCES)
    return Divergences(*(torch.compile(each, **compile_options(device)) for each in smooth))


def choose_divergences(compiled: bool, device: torch.device) -> Divergences:
    """Returns both divergences as a step on `device` computes them."""
    return compile_divergences(device) if compiled else EAGER_DIVERGENCES


class DivergenceSum(torch.autograd.Function):
    """The sums of losses and of divergences of tokens, computed chunk by chunk with gradients: see `forward`."""

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        weights: Tensor,
        compare: Callable[[Tensor, slice], tuple[Tensor, Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Returns the weighted sums of losses and of divergences (0-d), and keeps the gradients of the first.

        Args:
            ctx: of autograd.
            hidden: (N, C), of the model.
            weight: (V, C), of its head.
            weights: (N,), 1 at targets and 0 elsewhere.
            compare: returns losses (n,) of a slice of the N, their gradients (n, V), and the divergences (n,), given
                the products (n, V) of the model's head.
        """
        cast = weight.to(hidden.dtype)
        hidden_grad = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device)
        shape = weight.shape if weight.requires_grad else 0  # a frozen head has no gradient
        weight_grad = torch.zeros(shape, dtype=torch.float32, device=weight.device)
        total, divergence = torch.zeros(2, dtype=torch.float32, device=hidden.device)
        factor = FLOAT16_ROW_SUM if hidden.dtype == torch.float16 else 1.0  # whose smallest gradients would be 0
        for part in chunk_slices(hidden, len(weight)):
            losses, g, divergences = compare(hidden[part] @ cast.T, part)
            total += (losses * weights[part]).sum()
            divergence += (divergences * weights[part]).sum()
            g = (g if factor == 1 else g * factor).to(hidden.dtype)
            add_chunk_gradients(hidden[part], cast, g, weights[part, None] / factor, hidden_grad[part], weight_grad)
            del g  # before the next chunk's logits are made
        ctx.save_for_backward(hidden_grad.to(hidden.dtype), weight_grad)
        ctx.mark_non_differentiable(divergence)
        return total, divergence

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor):
        """Returns the kept gradients times that of the first sum (0-d)."""
        hidden_grad, weight_grad = ctx.saved_tensors
        head_grad = weight_grad * grad if ctx.needs_input_grad[1] else None
        return hidden_grad * grad.to(hidden_grad.dtype), head_grad, None, None
