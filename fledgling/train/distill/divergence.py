"""The divergence of a model's tokens from its teacher's, chunk by chunk, with its gradient in the same pass.

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

import torch
from torch import Tensor

from fledgling.config import ModelConfig
from fledgling.model.logprob import FLOAT16_ROW_SUM, add_chunk_gradients, chunk_slices


def scale_logits(z: Tensor, config: ModelConfig, temperature: float) -> tuple[Tensor, Tensor | float]:
    """Returns y (n, V) in fp32, and dy/dz, of the products z (n, V) of the head of a model with that configuration."""
    cap, shift = config.logit_softcap, config.logit_shift
    if not cap:
        return z.float() / temperature, 1 / temperature
    t = torch.tanh((z.float() + shift if shift else z.float()) / cap)
    return (cap / temperature) * t, (1 - t * t) / temperature


def token_divergence(
    z: Tensor, teacher_z: Tensor, config: ModelConfig, teacher: ModelConfig, temperature: float
) -> tuple[Tensor, Tensor]:
    """Returns KL(teacher || model) in nats (n,), and its gradient for z (n, V).

    Args:
        z: (n, V), products of the model's head.
        teacher_z: (n, V), of the teacher's.
        config: of the model.
        teacher: configuration of the teacher.
        temperature: T.
    """
    y, slope = scale_logits(z, config, temperature)
    log_q, log_p = y.log_softmax(-1), scale_logits(teacher_z, teacher, temperature)[0].log_softmax(-1)
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), (log_q.exp() - p) * slope


def top_k_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Returns log p of each of `ids` (n, K), and of all other tokens together: (n, K + 1), from logits (n, V).

    That of the others is a sum over them, not 1 less the rest, so that it is exact where it is small.
    """
    total = logits.logsumexp(-1, keepdim=True)
    others = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, ids), others], -1) - total


def top_k_divergence(
    z: Tensor, ids: Tensor, teacher_logprobs: Tensor, config: ModelConfig, temperature: float
) -> tuple[Tensor, Tensor]:
    """Returns KL(teacher || model) in nats (n,) of K tokens and all others as one class, and its gradient for z (n, V).

    Args:
        z: (n, V), products of the model's head.
        ids: (n, K), the tokens that the teacher finds most likely.
        teacher_logprobs: (n, K + 1), the result of `top_k_logprobs` for the teacher's logits over the temperature.
        config: of the model.
        temperature: T.
    """
    y, slope = scale_logits(z, config, temperature)
    log_q, p = top_k_logprobs(y, ids), teacher_logprobs.exp()
    q = y.softmax(-1)
    target = (q * (p[:, -1:] / log_q[:, -1:].exp())).scatter(-1, ids, p[:, :-1])
    return (p * (teacher_logprobs - log_q)).sum(-1), (q - target) * slope


@dataclass(frozen=True)
class Divergences:
    """The two divergences, as they are or compiled."""

    tokens: Callable[..., tuple[Tensor, Tensor]] = token_divergence
    top_k: Callable[..., tuple[Tensor, Tensor]] = top_k_divergence


EAGER_DIVERGENCES = Divergences()


def compile_divergences() -> Divergences:
    """Returns both divergences as fused kernels. Needs a compiler."""
    return Divergences(torch.compile(token_divergence), torch.compile(top_k_divergence))


class DivergenceSum(torch.autograd.Function):
    """The sum of the divergences of tokens, computed chunk by chunk with its gradients: see `forward`."""

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        weights: Tensor,
        divergence: Callable[[Tensor, slice], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Returns the weighted sum (0-d), and keeps the gradients for the backward pass.

        Args:
            ctx: of autograd.
            hidden: (N, C), of the model.
            weight: (V, C), of its head.
            weights: (N,), 1 at targets and 0 elsewhere.
            divergence: returns the divergences (n,) of a slice of the N and their gradients (n, V), given the products
                (n, V) of the model's head.
        """
        cast = weight.to(hidden.dtype)
        hidden_grad = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device)
        shape = weight.shape if weight.requires_grad else 0  # a frozen head has no gradient
        weight_grad = torch.zeros(shape, dtype=torch.float32, device=weight.device)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        factor = FLOAT16_ROW_SUM if hidden.dtype == torch.float16 else 1.0  # whose smallest gradients would be 0
        for part in chunk_slices(hidden, len(weight)):
            values, g = divergence(hidden[part] @ cast.T, part)
            total += (values * weights[part]).sum()
            g = (g if factor == 1 else g * factor).to(hidden.dtype)
            add_chunk_gradients(hidden[part], cast, g, weights[part, None] / factor, hidden_grad[part], weight_grad)
            del g  # before the next chunk's logits are made
        ctx.save_for_backward(hidden_grad.to(hidden.dtype), weight_grad)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Returns the kept gradients times that of the sum (0-d)."""
        hidden_grad, weight_grad = ctx.saved_tensors
        head_grad = weight_grad * grad if ctx.needs_input_grad[1] else None
        return hidden_grad * grad.to(hidden_grad.dtype), head_grad, None, None
