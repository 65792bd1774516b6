"""Log-probabilities of targets, chunk by chunk, so that the logits of a whole batch never exist.

Start with `cross_entropy_sum` (the training loss) and `target_logprobs` (RL, DPO, bits per byte). `iterate_logits`
yields plain logits by the same chunks, for evaluation and inference.

The logits are soft-capped, so |logit| <= cap and exp needs no maximum. For a chunk of tokens with z = hidden @ W^T, one
fused pass gives e = exp(cap t) with t = tanh(z / cap), the row sums S, and G = e (1 - t^2), which is S times the
gradient of log S with respect to z. S divides whole rows, so it is applied to the (chunk, C) results and G is never
rescaled. This takes three matrix products a chunk and no recomputation (6 V C FLOPs a token) where the weight of every
token is known beforehand (`cross_entropy_sum`); a fourth product where it is not (`target_logprobs`).

A token may have K targets with a weight each (`data/multi_token_prediction.py`). Their gradients add up to the same G
times the sum of the weights, less a term for each target, so that they share the three products.

With a shift s the cap is cap tanh((z + s) / cap): s is added to z, and nothing else changes.

Without a cap (logit_softcap 0) a chunk still holds whole rows of logits, so each row's maximum is known:
e = exp(z - max), G = e, and everything else is the same, as exact and with no more memory.

N tokens, n tokens of a chunk, K targets of a token, C width, V vocabulary. Sums are fp32; products run in the dtype of
hidden_states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fledgling.model.head_chunk import head_chunk_tokens
from fledgling.runtime.compile_options import compile_options

IGNORE_INDEX = -1
FLOAT16_ROW_SUM = 1024.0
TANH_NUMERATOR = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
TANH_DENOMINATOR = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def rational_tanh(x: Tensor) -> Tensor:
    """Computes tanh of x (...) as a quotient of polynomials of degree 13 and 6 (the coefficients of Eigen's `ptanh`).

    The relative error is at most 2e-7, and in a fused loop it takes a third less time than the library's tanh. The
    argument is clamped where tanh rounds to 1 in fp32.
    """
    x = x.clamp(-7.90531110763549805, 7.90531110763549805)
    y = x * x
    numerator = torch.full_like(y, TANH_NUMERATOR[0])
    for coefficient in TANH_NUMERATOR[1:]:
        numerator = numerator * y + coefficient
    denominator = torch.full_like(y, TANH_DENOMINATOR[0])
    for coefficient in TANH_DENOMINATOR[1:]:
        denominator = denominator * y + coefficient
    return x * numerator / denominator


def softcap_exp(z: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """z (n, V) -> row sums (n,) of e = exp(cap tanh(z / cap)) in fp32, and G = e (1 - tanh^2) (n, V) in z's dtype."""
    t = rational_tanh(z.float() / cap)
    e = torch.exp(cap * t)
    return e.sum(-1), (e * (1 - t * t)).to(z.dtype)


def softcap_exp_inplace(z: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Computes `softcap_exp` of z (n, V) without a compiler: two fp32 temporaries of its size instead of six."""
    t = z.to(torch.float32, copy=True).div_(cap).tanh_()
    e = torch.mul(t, cap).exp_()
    sums = e.sum(-1)
    return sums, e.mul_(t.square_().neg_().add_(1)).to(z.dtype)


def shifted_exp(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z (n, V) -> row maxima m (n, 1), row sums (n,) of e = exp(z - m) in fp32, and e (n, V) in z's dtype."""
    maxima = z.amax(-1, keepdim=True).float()
    e = z.to(torch.float32, copy=True).sub_(maxima).exp_()
    return maxima, e.sum(-1), e.to(z.dtype)


def scaled_softmax(z: Tensor, cap: float) -> tuple[Tensor, Tensor, Tensor]:
    """z (n, V) -> shifts (n, 1), row sums (n,) of e = exp(y - shift), and G (n, V): y is z, capped if cap is not 0.

    For float16, whose largest number is 65,504: every row of e sums to FLOAT16_ROW_SUM, so that neither G nor the term
    of a target exceeds it, and the probabilities of a uniform distribution stay above its smallest normal number.
    """
    t = torch.tanh(z.float() / cap) if cap else None
    y = z.float() if t is None else cap * t
    shifts = y.logsumexp(-1, keepdim=True) - math.log(FLOAT16_ROW_SUM)
    e = torch.exp(y - shifts)
    return shifts, e.sum(-1), (e if t is None else e * (1 - t * t)).to(z.dtype)


@dataclass(frozen=True)
class LogprobKernels:
    """The passes over a chunk of logits, as they are or compiled. They belong to a model, as its compiled blocks do."""

    softcap_exp: Callable[..., tuple[Tensor, ...]] = softcap_exp_inplace
    shifted_exp: Callable[..., tuple[Tensor, ...]] = shifted_exp
    scaled_softmax: Callable[..., tuple[Tensor, ...]] = scaled_softmax


EAGER = LogprobKernels()


def compile_logprob_kernels(device: torch.device) -> LogprobKernels:
    """Returns each pass over a chunk as one fused kernel for `device`, which rounds otherwise. Needs a compiler."""
    passes = (softcap_exp, shifted_exp, scaled_softmax)
    return LogprobKernels(*(torch.compile(each, dynamic=None, **compile_options(device)) for each in passes))


def _chunk_logprobs(
    hidden_states: Tensor,
    weight: Tensor,
    targets: Tensor,
    cap_and_shift: tuple[float, float],
    kernels: LogprobKernels,
    shares: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes one chunk: log-probabilities (n, K), sums S (n, 1), and G (n, V) less the targets' terms.

    d log p(y) / dz = (1 - t_y^2) [v = y] - G / S, so G - S (1 - t_y^2) [v = y] is -S times that derivative (t_y is 0
    without a cap). Of K targets whose shares add up to 1 it is the mean: each term is multiplied by its share.

    Args:
        targets: (n, K).
        shares: (n, K); None: of a single target, 1.
    """
    cap, shift = cap_and_shift
    z = hidden_states @ weight.T if shift == 0 else torch.addmm(z_shift(hidden_states, shift), hidden_states, weight.T)
    y = targets.clamp(min=0)
    rows = torch.arange(len(y), device=y.device)  # index_put, because scatter_ on CPU makes an fp32 copy of all of g
    logits = z.gather(1, y).float()  # (n, K)
    slopes = None
    if cap:
        t = torch.tanh(logits / cap)
        logits, slopes = cap * t, 1 - t * t
    if z.dtype == torch.float16:
        maxima, sums, g = kernels.scaled_softmax(z, cap)
        logits = logits - maxima
    elif cap == 0:
        maxima, sums, g = kernels.shifted_exp(z)
        logits = logits - maxima
    else:
        sums, g = kernels.softcap_exp(z, cap)
    sums = sums[:, None]
    terms = sums if shares is None else sums * shares  # (n, 1), (n, K)
    first = torch.exp(logits[:, :1]) - terms[:, :1]
    g[rows, y[:, 0]] = (first if slopes is None else first * slopes[:, :1])[:, 0].to(g.dtype)
    for k in range(1, y.shape[1]):  # one after the other, because they may be the same token
        term = terms[:, k] if slopes is None else terms[:, k] * slopes[:, k]
        g[rows, y[:, k]] -= term.to(g.dtype)
    return logits - sums.log(), sums, g


def z_shift(hidden_states: Tensor, shift: float) -> Tensor:
    """Returns the shift of all logits as a bias (1,), which a matrix product adds without another pass."""
    return torch.full((1,), shift, dtype=hidden_states.dtype, device=hidden_states.device)


def chunk_slices(hidden_states: Tensor, vocab_size: int) -> Iterator[slice]:
    """Yields the slices of hidden_states (N, C) whose logits are computed at once."""
    size = head_chunk_tokens(vocab_size, hidden_states.device.type)
    for start in range(0, len(hidden_states), size):
        yield slice(start, start + size)


def add_chunk_gradients(
    hidden_states: Tensor, weight: Tensor, g: Tensor, scale: Tensor, hidden_grad: Tensor, weight_grad: Tensor
) -> None:
    """Writes the gradient of a chunk's hidden states and adds to that of the weight, unless that is empty (frozen).

    Args:
        hidden_states: (n, C).
        weight: (V, C), in the dtype of g.
        g: (n, V), which times `scale` are the derivatives for the logits: of log-probabilities -S times theirs.
        scale: (n, 1): of log-probabilities coefficient / S.
        hidden_grad: (n, C), fp32, receives the gradient.
        weight_grad: (V, C), fp32, is added to; or empty.
    """
    torch.mul((g @ weight), scale, out=hidden_grad)
    if not weight_grad.numel():
        return
    scaled = (hidden_states * scale).to(g.dtype)
    if g.dtype == weight_grad.dtype:
        weight_grad.addmm_(g.T, scaled)  # without a temporary (V, C) product
    else:
        weight_grad.add_(g.T @ scaled)


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden_states: Tensor,
        weight: Tensor,
        targets: Tensor,
        cap: float,
        shift: float,
        weights: Tensor | None,
        kernels: LogprobKernels,
    ) -> Tensor:
        cast = weight.to(hidden_states.dtype)
        needs_grad = hidden_states.requires_grad or weight.requires_grad
        device = hidden_states.device
        hidden_grad = torch.empty(hidden_states.shape if needs_grad else 0, dtype=torch.float32, device=device)
        shape = weight.shape if needs_grad and weight.requires_grad else 0  # a frozen head has no gradient
        weight_grad = torch.zeros(shape, dtype=torch.float32, device=weight.device)
        total = torch.zeros((), dtype=torch.float32, device=device)
        for part in chunk_slices(hidden_states, len(weight)):
            mask = (targets[part] != IGNORE_INDEX).float()  # (n, K)
            shares, coefficients = None, mask
            if weights is not None:
                mask = mask * weights[part]
                coefficients = mask.sum(-1, keepdim=True)
                shares = mask / coefficients.clamp(min=torch.finfo(torch.float32).tiny)
            logprobs, sums, g = _chunk_logprobs(hidden_states[part], cast, targets[part], (cap, shift), kernels, shares)
            total -= (logprobs * mask).sum()
            if needs_grad:
                add_chunk_gradients(hidden_states[part], cast, g, coefficients / sums, hidden_grad[part], weight_grad)
            del g  # before the next chunk's logits are made
        if needs_grad:
            ctx.save_for_backward(hidden_grad.to(hidden_states.dtype), weight_grad)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        hidden_grad, weight_grad = ctx.saved_tensors
        head_grad = weight_grad.mul_(grad) if ctx.needs_input_grad[1] else None
        return hidden_grad * grad.to(hidden_grad.dtype), head_grad, None, None, None, None, None


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden_states: Tensor,
        weight: Tensor,
        targets: Tensor,
        cap_and_shift: tuple[float, float],
        kernels: LogprobKernels,
    ) -> Tensor:
        cast = weight.to(hidden_states.dtype)
        parts = []
        for part in chunk_slices(hidden_states, len(weight)):
            logprobs = _chunk_logprobs(hidden_states[part], cast, targets[part, None], cap_and_shift, kernels)[0][:, 0]
            parts.append(torch.where(targets[part] != IGNORE_INDEX, logprobs, 0.0))
        ctx.cap_and_shift, ctx.kernels = cap_and_shift, kernels
        ctx.save_for_backward(hidden_states, weight, targets)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor):
        hidden_states, weight, targets = ctx.saved_tensors
        cast = weight.to(hidden_states.dtype)
        hidden_grad = torch.empty(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
        shape = weight.shape if ctx.needs_input_grad[1] else 0
        weight_grad = torch.zeros(shape, dtype=torch.float32, device=weight.device)
        for part in chunk_slices(hidden_states, len(weight)):
            given = hidden_states[part], cast, targets[part, None], ctx.cap_and_shift, ctx.kernels
            _, sums, g = _chunk_logprobs(*given)
            coefficients = torch.where(targets[part] != IGNORE_INDEX, grad[part], 0.0)
            scale = -coefficients[:, None] / sums
            add_chunk_gradients(hidden_states[part], cast, g, scale, hidden_grad[part], weight_grad)
            del g
        head_grad = weight_grad if ctx.needs_input_grad[1] else None
        return hidden_grad.to(hidden_states.dtype), head_grad, None, None, None


def cross_entropy_sum(
    hidden_states: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    logit_softcap: float,
    logit_shift: float,
    weights: Tensor | None = None,
    kernels: LogprobKernels = EAGER,
    positions: Tensor | None = None,
) -> Tensor:
    """Returns the sum over targets of -log p(target) in nats; targets equal to IGNORE_INDEX count as 0.

    Gradients are computed in the forward pass.

    Args:
        hidden_states: (..., C), in the dtype of the products.
        head_weight: (V, C), fp32.
        targets: (...), or with weights (..., K), int64.
        logit_softcap: the cap of the logits, above 0; or 0 for none.
        logit_shift: added to the logits before the cap, 0 for none.
        weights: (..., K), at least 0, of each target; None: a target for each hidden state, of weight 1.
        kernels: of the model (`Transformer.logprob_kernels`).
        positions: (n,) of the flattened targets, which include all that count (of several, whose weights are not 0): no
            logits of others are computed; None: of all.

    Returns:
        A scalar, fp32.
    """
    K = 1 if weights is None else weights.shape[-1]
    hidden, flat_targets = hidden_states.flatten(0, -2), targets.reshape(-1, K)
    flat_weights = None if weights is None else weights.reshape(-1, K)
    if positions is not None:
        hidden, flat_targets = hidden.index_select(0, positions), flat_targets.index_select(0, positions)
        flat_weights = None if flat_weights is None else flat_weights.index_select(0, positions)
    flat = hidden, head_weight, flat_targets, logit_softcap, logit_shift, flat_weights
    return _CrossEntropySum.apply(*flat, kernels)


def target_logprobs(
    hidden_states: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    logit_softcap: float,
    logit_shift: float,
    kernels: LogprobKernels = EAGER,
) -> Tensor:
    """Returns log p(target) in nats, shaped like targets (...), 0 at IGNORE_INDEX.

    The arguments are those of `cross_entropy_sum`. Differentiable with any weight for each token.
    """
    flat = hidden_states.flatten(0, -2), head_weight, targets.flatten()
    return _TargetLogprobs.apply(*flat, (logit_softcap, logit_shift), kernels).view(targets.shape)


def iterate_logits(
    hidden_states: Tensor, compute_logits: Callable[[Tensor], Tensor], vocab_size: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yields (tokens, logits): a slice of hidden_states (N, C) and that chunk's logits (n, V), one chunk at a time."""
    for part in chunk_slices(hidden_states, vocab_size):
        yield part, compute_logits(hidden_states[part])
