"""The decoder for transformers: copied into an export that no class of transformers can hold, and loaded from there by

    AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)

It needs torch and transformers and nothing else of fledgling. Attention is PyTorch's kernel with a mask; the reference,
with training and a faster decoder, is fledgling itself.

B batch, T new tokens, S tokens with those of the cache, C width, H heads, G key/value heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

GATE_WIDTH = 32
PARTS = {
    **dict.fromkeys(("value_gates", "residual_scalars", "skip_scalars", "back_out", "smear", "head_gates"), False),
    **{"exclusive_attention": False, "window_last_layer": False, "qk_norm": True, "embedding_norm": True},
    **{"value_embeddings": 0, "window_pattern": "", "window_size": 0, "logit_shift": 0.0},
}


class FledglingConfig(PretrainedConfig):
    """Sizes under the names of transformers, parts under those of fledgling (docs/features.md)."""

    model_type = "fledgling"

    def __init__(
        self,
        vocab_size: int = 1024,
        hidden_size: int = 256,
        intermediate_size: int = 1024,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 2,
        num_key_value_heads: int = 2,
        max_position_embeddings: int = 256,
        rms_norm_eps: float = 1e-6,
        hidden_act: str = "relu2",
        final_logit_softcapping: float | None = 15.0,
        rope_theta: float = 10_000.0,
        **parts: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads, self.max_position_embeddings = num_key_value_heads, max_position_embeddings
        self.rms_norm_eps, self.hidden_act, self.rope_theta = rms_norm_eps, hidden_act, rope_theta
        self.final_logit_softcapping = final_logit_softcapping
        for name, default in PARTS.items():
            setattr(self, name, parts.pop(name, default))
        super().__init__(**parts)

    def window_of(self, layer: int) -> int | None:
        """Returns how many tokens a query of that layer sees, itself included; None: all before it."""
        pattern, last = self.window_pattern, self.num_hidden_layers - 1
        is_short = pattern and (self.window_last_layer or layer < last) and pattern[layer % len(pattern)] == "S"
        return self.window_size if is_short else None

    def has_table(self, layer: int) -> bool:
        """Returns whether that layer adds an embedding of the token to its values."""
        return self.value_embeddings > 0 and (self.num_hidden_layers - 1 - layer) % self.value_embeddings == 0

    @property
    def num_skips(self) -> int:
        """How many blocks read the output of an earlier one."""
        return max(0, (self.num_hidden_layers - 2) // 2) if self.skip_scalars else 0


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Returns x (..., C) divided by its root mean square, computed in fp32."""
    return F.rms_norm(x.float(), x.shape[-1:], None, eps).type_as(x)


class Scalars(nn.Module):
    """Learned numbers."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(values))


class Gate(nn.Module):
    """sigmoid(W x[:32]) for each head."""

    def __init__(self, config: FledglingConfig, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, min(GATE_WIDTH, config.hidden_size)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, heads)."""
        return torch.sigmoid(F.linear(x[..., : self.weight.shape[1]], self.weight))


class ValueEmbedding(nn.Module):
    """A table by token, and its gate."""

    def __init__(self, config: FledglingConfig, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.vocab_size, width))
        self.gate = Gate(config, config.num_key_value_heads) if config.value_gates else None

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        """tokens (B, T), x (B, T, C) -> (B, T, G D)."""
        added = F.embedding(tokens, self.weight)
        if self.gate is None:
            return added
        gate = 2 * self.gate(x)
        return (added.unflatten(-1, (gate.shape[-1], -1)) * gate[..., None]).flatten(-2)


class Attention(nn.Module):
    """Attention with rotation, normalized queries and keys, and the optional parts."""

    def __init__(self, config: FledglingConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.window = config, layer, config.window_of(layer)
        width, self.head_width = config.hidden_size, config.hidden_size // config.num_attention_heads
        kv_width = config.num_key_value_heads * self.head_width
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.value_embedding = ValueEmbedding(config, kv_width) if config.has_table(layer) else None
        self.gate = Gate(config, config.num_attention_heads) if config.head_gates else None

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotates halves of x (B, H, T, D) against each other by -angle, and normalizes."""
        half = self.head_width // 2
        pairs = torch.arange(0, self.head_width, 2, dtype=torch.float32, device=x.device)
        angles = positions[:, None, :, None].float() / self.config.rope_theta ** (pairs / self.head_width)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second = x[..., :half], x[..., half:]
        rotated = torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)
        return rms_norm(rotated, self.config.rms_norm_eps) if self.config.qk_norm else rotated

    def forward(
        self, x: Tensor, tokens: Tensor, positions: Tensor, visible: Tensor, cache: DynamicCache | None
    ) -> Tensor:
        """x (B, T, C), visible (B, 1, T, S) -> (B, T, C)."""

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

        v = self.v_proj(x)
        v = v if self.value_embedding is None else v + self.value_embedding(tokens, x)
        q, k, v = self.rotate(split(self.q_proj(x)), positions), self.rotate(split(self.k_proj(x)), positions), split(v)
        own = v
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        if self.window is not None:
            keys, queries = visible.shape[-1], visible.shape[-2]
            places = torch.arange(keys, device=x.device)
            visible = visible & (places[keys - queries :, None] - places < self.window)
        repeats = q.shape[1] // k.shape[1]  # with a mask no fused kernel of CUDA reads grouped heads
        k, v = (part.repeat_interleave(repeats, dim=1) if repeats > 1 else part for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        if self.config.exclusive_attention:
            y, own = y.unflatten(1, (own.shape[1], -1)), own[:, :, None].float()
            share = (y.float() * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True).clamp(min=1e-12)
            y = (y - (share * own).to(y.dtype)).flatten(1, 2)
        if self.gate is not None:
            y = y * (2 * self.gate(x)).transpose(1, 2)[..., None]
        return self.o_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two matrices around ReLU^2 or GELU."""

    def __init__(self, config: FledglingConfig) -> None:
        super().__init__()
        self.is_squared = config.hidden_act == "relu2"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        y = self.fc1(x)
        return self.fc2(y.relu().square() if self.is_squared else F.gelu(y, approximate="tanh"))


class GatedFeedForward(nn.Module):
    """Three matrices: SwiGLU."""

    def __init__(self, config: FledglingConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: FledglingConfig, layer: int) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.residual = Scalars(1.0, 0.0) if config.residual_scalars else None
        self.self_attn = Attention(config, layer)
        self.mlp = GatedFeedForward(config) if config.hidden_act == "silu" else FeedForward(config)

    def forward(self, x: Tensor, embeddings: Tensor, *args: Any) -> Tensor:
        """x and the embedded tokens (B, T, C) -> (B, T, C); args: see `Attention`."""
        if self.residual is not None:
            a, b = self.residual.weight
            x = a * x + b * embeddings
        x = x + self.self_attn(rms_norm(x, self.eps), *args)
        return x + self.mlp(rms_norm(x, self.eps))


class Smear(nn.Module):
    """x + w g(x) previous."""

    def __init__(self, config: FledglingConfig) -> None:
        super().__init__()
        self.scale, self.gate = Scalars(0.0), Gate(config, 1)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        """Both (B, T, C) -> (B, T, C)."""
        return x + self.scale.weight * self.gate(x) * previous


class SkipConnections(nn.Module):
    """Skips, before every layer, and back-out, after the last."""

    def __init__(self, config: FledglingConfig) -> None:
        super().__init__()
        self.depth, self.num_skips = config.num_hidden_layers, config.num_skips
        self.skips = Scalars(*[0.0] * self.num_skips) if self.num_skips else None
        self.back_out = Scalars(0.0) if config.back_out else None

    def forward(self, x: Tensor, streams: list[Tensor]) -> Tensor:
        """Returns what is read next, from x (B, T, C) after len(streams) layers; x is added to streams."""
        skip = self.depth - 2 - len(streams)
        streams.append(x)
        if self.skips is not None and 0 <= skip < self.num_skips:
            x = x + self.skips.weight[skip] * streams[skip + 1]
        if self.back_out is not None and len(streams) > self.depth:
            x = x - self.back_out.weight * streams[self.depth // 2]
        return x


class Decoder(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: FledglingConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.smear = Smear(config) if config.smear else None
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.skip_connections = SkipConnections(config) if config.num_skips or config.back_out else None

    def forward(self, tokens: Tensor, attention_mask: Tensor | None, cache: DynamicCache | None) -> Tensor:
        """tokens (B, T), attention_mask (B, S) 0 for padding -> hidden states (B, T, C)."""
        config, depth = self.config, self.config.num_hidden_layers
        (rows, time), past = tokens.shape, cache.get_seq_length() if cache is not None else 0
        real = torch.ones(rows, past + time, device=tokens.device) if attention_mask is None else attention_mask
        real = real.bool()
        positions = (real.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        places = torch.arange(past + time, device=tokens.device)
        visible = (places[past:, None] >= places) & (real[:, None] | (places[past:, None] == places))
        visible = visible[:, None]  # (B, 1, T, S); padding sees itself, so that no row of scores is empty
        x = self.embed_tokens(tokens)
        x = rms_norm(x, config.rms_norm_eps) if config.embedding_norm else x
        if self.smear is not None:
            all_x = x[:, None]
            if cache is not None:  # the embedded tokens are one more layer of the cache
                if len(cache.layers) == depth and cache.layer_class_to_replicate is None:
                    cache.layers.append(DynamicLayer())
                all_x, _ = cache.update(all_x, all_x[..., :1], depth)
            shifted = F.pad(all_x[:, 0] * real[..., None].to(x.dtype), (0, 0, 1, 0))
            x = self.smear(x, shifted[:, past : past + time])
        embeddings, streams = x, list[Tensor]()
        for layer in self.layers:
            x = x if self.skip_connections is None else self.skip_connections(x, streams)
            x = layer(x, embeddings, tokens, positions, visible, cache)
        x = x if self.skip_connections is None else self.skip_connections(x, streams)
        return rms_norm(x, config.rms_norm_eps)


class FledglingForCausalLM(PreTrainedModel, GenerationMixin):
    """The decoder with its head."""

    config_class = FledglingConfig
    base_model_prefix = "model"
    _no_split_modules = ["Layer"]  # noqa: RUF012
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (read by transformers)

    def __init__(self, config: FledglingConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the embedding."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """Returns the head."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Returns logits (B, T, V), the loss where labels (B, T) are given, and the cache."""
        if past_key_values is None and use_cache and not self.training:
            past_key_values = DynamicCache()
        hidden = self.model(input_ids, attention_mask, past_key_values)
        logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden).float()
        cap, shift = self.config.final_logit_softcapping, self.config.logit_shift
        logits = cap * torch.tanh((logits + shift) / cap) if cap else logits
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
