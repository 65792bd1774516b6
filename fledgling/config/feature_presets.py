"""Optional features of our own family by `model.preset`, and the preset of models that earlier versions recorded.

The first is the default, better than the plain model at equal time (docs/features.md). nanochat-YEAR has those of the
system that this package began from, in that year; small-2026, for rows of a few hundred tokens, has no windows and a
value embedding in every layer.
"""

from __future__ import annotations

from typing import Any

FEATURES_OFF: dict[str, Any] = {
    **{"value_embeddings": 0, "value_gates": False, "window_pattern": "", "window_share": 0.25},
    **dict.fromkeys(("residual_scalars", "skip_scalars", "back_out", "smear"), False),
    **dict.fromkeys(("head_gates", "exclusive_attention"), False),
}
FEATURES_2026 = {
    **{"value_embeddings": 2, "value_gates": True, "window_pattern": "SSSL", "window_share": 0.5},
    **{"residual_scalars": True, "back_out": True, "smear": True},
}
SMALL_2026 = {**FEATURES_2026, "value_embeddings": 1, "window_pattern": ""}
FEATURE_PRESETS = {
    "nanochat-2026": {**FEATURES_OFF, **FEATURES_2026},
    "nanochat-2025": FEATURES_OFF,
    "small-2026": {**FEATURES_OFF, **SMALL_2026},
}


def name_preset(values: dict[str, Any]) -> None:
    """Gives the fields of a recorded model their preset: before there were presets all were plain.

    Other families have none: what a version recorded for them, its default, is not read.
    """
    if values.get("family", "fledgling") == "fledgling":
        values.setdefault("preset", "nanochat-2025")
    else:
        values.pop("preset", None)
