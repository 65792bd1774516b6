"""Families of open models: presets of the same parts, each the class of that name in transformers.

Every entry is the llama family with what differs. A published model's own configuration is read by
`fledgling.export.open_classes`; these are the values of a recipe that names the family.
"""

from __future__ import annotations

from typing import Any

LLAMA: dict[str, Any] = {  # Touvron et al. 2023, arXiv 2307.09288
    "norm": "rms_weighted",
    "positions": "rope",
    "rope_direction": 1,
    "activation": "swiglu",
    "bias": False,
    "qkv_bias": False,
    "tie_embeddings": False,
    "qk_norm": False,
    "qk_norm_weights": "none",
    "norm_placement": "pre",
    "parallel_residual": False,
    "partial_rotary_factor": 1.0,
    "embedding_norm": False,
    "embedding_multiplier": 1.0,
    "logit_softcap": 0.0,
    "norm_eps": 1e-5,
    "window_last_layer": False,
}
QWEN2 = {**LLAMA, "qkv_bias": True, "norm_eps": 1e-6, "window_last_layer": True}  # arXiv 2412.15115 (Qwen2.5)
OLMO2 = {**LLAMA, "norm_placement": "post", "qk_norm": True, "qk_norm_weights": "layer"}  # arXiv 2501.00656
OPEN_FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {**LLAMA, "window_last_layer": True},  # arXiv 2310.06825
    "phi3": {**LLAMA, "window_last_layer": True},  # arXiv 2404.14219
    "qwen2": QWEN2,
    "qwen3": {**QWEN2, "qkv_bias": False, "qk_norm": True, "qk_norm_weights": "head"},  # arXiv 2505.09388
    "smollm3": {**LLAMA, "norm_eps": 1e-6, "tie_embeddings": True, "window_last_layer": True},
    "olmo2": OLMO2,
    "olmo3": {**OLMO2, "window_last_layer": True},
    "gemma3": {  # arXiv 2503.19786; the multiplier of a recipe's model is the square root of its width
        **LLAMA,
        "norm_placement": "both",
        "qk_norm": True,
        "qk_norm_weights": "head",
        "activation": "geglu",
        "tie_embeddings": True,
        "norm_eps": 1e-6,
        "embedding_multiplier": None,
        "window_last_layer": True,
    },
    "gpt_neox": {  # Black et al. 2022, arXiv 2204.06745; Pythia, arXiv 2304.01373
        **LLAMA,
        "norm": "layer",
        "activation": "gelu_exact",
        "bias": True,
        "qkv_bias": True,
        "parallel_residual": True,
        "partial_rotary_factor": 0.25,
    },
}
