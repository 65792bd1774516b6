"""Every formula of the planner equals the counted thing: tensors, operations, and bytes alive."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import memory as bench
from fledgling.config import ModelConfig
from fledgling.config.model import FAMILIES, PRESETS
from fledgling.model.transformer import Transformer
from fledgling.optim.roles import assign_role
from fledgling.plan import flops
from fledgling.plan.parameters import COMPONENTS, count_matrix_parameters, count_parameters, parameter_shapes
from tests.ranks import on_ranks

MOST = 0.03  # error of memory, as a share
MOST_QUANTIZED = 0.05  # where frozen matrices are quantized

PART = {
    "attention_norm": "norms",
    "mlp_norm": "norms",
    "attention_output_norm": "norms",
    "mlp_output_norm": "norms",
    "attention": "attention",
    "mlp": "feed_forward",
}


def component(name: str) -> str:
    """The component of the parameter called `name`."""
    words = name.split(".")
    if words[-2] == "gate":
        return "gates"
    if words[0] in ("smear", "skip_connections"):
        return "skip_connections"
    if words[-2] in ("value_embedding", "residual"):
        return {"residual": "residual_scalars"}.get(words[-2], "value_embeddings")
    return PART[words[2]] if words[0] == "blocks" else {"norm": "final_norm"}.get(words[0], words[0])


@st.composite
def configs(draw) -> ModelConfig:
    """A model of any family and size, with any of its parts in another's place."""
    kv_heads, groups = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 3))
    heads, head_width = kv_heads * groups, draw(st.sampled_from([2, 8, 16]))
    parts = {
        "norm": draw(st.sampled_from(["rms", "rms_weighted", "layer"])),
        "activation": draw(st.sampled_from(["relu2", "gelu", "swiglu"])),
        "tie_embeddings": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "positions": draw(st.sampled_from(["rope", "learned"])),
        "value_embeddings": draw(st.integers(0, 3)),
        **{
            name: draw(st.booleans())
            for name in ("residual_scalars", "head_gates", "skip_scalars", "back_out", "smear")
        },
        "window_pattern": draw(st.sampled_from(["", "S", "SSL"])),
        "norm_placement": draw(st.sampled_from(["pre", "post", "both"])),
        "qk_norm_weights": draw(st.sampled_from(["none", "head", "layer"])),
        "qkv_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "head_dim": draw(st.sampled_from([0, 4, 12])),
    }
    parts["value_gates"] = parts["value_embeddings"] > 0 and draw(st.booleans())
    return ModelConfig(
        family=draw(st.sampled_from(sorted(PRESETS))),
        vocab_size=draw(st.integers(1, 999)),
        depth=draw(st.integers(1, 5)),
        width=heads * head_width,
        heads=heads,
        kv_heads=kv_heads,
        context=draw(st.integers(1, 64)),
        partial_rotary_factor=1.0,
        intermediate_size=draw(st.integers(1, 200)),
        **(parts if draw(st.booleans()) else {}),
    )


@settings(max_examples=60)
@given(config=configs())
def test_parameters_equal_the_counted_tensors(config):
    with torch.device("meta"):
        model = Transformer(config)
    found = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert list(parameter_shapes(config).items()) == list(found.items())
    counted = dict.fromkeys(COMPONENTS, 0)
    for name, tensor in model.named_parameters():
        counted[component(name)] = counted.get(component(name), 0) + tensor.numel()
    if config.tie_embeddings:  # one matrix, which bears the head's name: counted where a token meets it first
        counted["embedding"], counted["head"] = counted["head"], 0
    assert count_parameters(config) == {"total": sum(counted.values()), **counted}
    muon = sum(p.numel() for n, p in model.named_parameters() if assign_role(n, tuple(p.shape)) == "matrix")
    assert count_matrix_parameters(config) == muon


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_flops_equal_torch_s_own_count(family, kv_heads):
    sizes = {"vocab_size": 96, "depth": 2, "width": 32, "heads": 2, "kv_heads": kv_heads, "context": 16}
    config = ModelConfig(family=family, preset="nanochat-2025", **sizes)
    model = Transformer(config)
    model.initialize(0)
    tokens = torch.zeros(3, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.compute_logits(model(tokens))
    assert counter.get_total_flops() == flops.forward_flops_per_token(config) * 3 * 16
    named = flops.forward_flops(config)
    assert named["total"] == sum(count for name, count in named.items() if name != "total")
    assert flops.training_flops(config)["total"] == flops.training_flops_per_token(config) == 3 * named["total"]


def test_a_window_counts_the_keys_that_are_seen():
    sizes = {"vocab_size": 96, "depth": 2, "width": 32, "heads": 2, "kv_heads": 2, "context": 16}
    config = ModelConfig(family="fledgling", **sizes, window_pattern="S", window_size=5)
    seen = sum(min(place, 5) for place in range(1, 17)) + sum(range(1, 17))
    assert flops.forward_flops(config, counted="causal")["attention"] * 16 == 4 * 32 * seen
    assert flops.forward_flops(config)["attention"] == 4 * 32 * (5 + 16)
    assert flops.decode_flops(config, 16) - flops.decode_flops(config, 15) == 4 * 32


def test_causal_attention_counts_the_keys_that_are_seen():
    config = ModelConfig(96, 2, 32, 2, 2, 16, preset="nanochat-2025")
    seen = sum(range(1, 17))  # pairs of a row
    causal = flops.forward_flops(config, counted="causal")
    assert causal["attention"] * 16 == 4 * 2 * 32 * seen
    assert causal["head"] == flops.forward_flops(config)["head"]
    assert flops.decode_flops(config, 16) - flops.decode_flops(config, 15) == 4 * 2 * 32


FEW = (0, 4, 6, 11, 13, 19, 20, 25, 27)  # of the grid: every kind of moment, dtype, family and way of attention


ADAPTERS = [i for i, case in enumerate(bench.EAGER) if case.adapter != "none" or case.teacher != "none" or case.rounded]


@pytest.mark.parametrize("case", [bench.EAGER[i] for i in (*FEW, *ADAPTERS)], ids=str)
def test_memory_is_within_three_percent_of_the_allocator_s(case):
    (row,) = bench.measure_memory((case,))
    most = MOST if case.quantization == "none" else MOST_QUANTIZED
    assert abs(row["error"]) <= most, f"{row['predicted']:,} predicted, {row['measured']:,} measured"


STREAM = {"skip_scalars": True, "back_out": True, "smear": True}
GATES = {"value_embeddings": 2, "value_gates": True, "head_gates": True, "exclusive_attention": True}
FEATURES = [
    (0, {"flash_norm": True}),
    (20, {"flash_norm": True}),
    (12, {"residual_scalars": True, "value_embeddings": 2}),
    (0, {"window_pattern": "SL", "window_size": 40}),
    (6, {"window_pattern": "SL", "window_size": 300}),
    (7, {"window_pattern": "SL", "window_size": 1024}),
    (6, {"window_pattern": "SL", "window_size": 60}),
    (0, STREAM),
    (12, {**STREAM, **GATES}),
    (20, GATES),
]


@pytest.mark.parametrize(("place", "features"), FEATURES)
def test_memory_of_optional_features_is_planned_too(place, features, monkeypatch):
    plain = bench.Case.config.fget
    monkeypatch.setattr(bench.Case, "config", property(lambda case: replace(plain(case), **features)))
    (row,) = bench.measure_memory((bench.EAGER[place],))
    assert abs(row["error"]) <= MOST, f"{row['predicted']:,} predicted, {row['measured']:,} measured"


def test_masks_of_pieces_grow_with_the_rows_and_the_dtype():
    case = replace(bench.EAGER[6], rows=2, dtype="bfloat16", preset="nanochat-2026")
    (row,) = bench.measure_memory((case,))
    assert abs(row["error"]) <= MOST, f"{row['predicted']:,} predicted, {row['measured']:,} measured"


@pytest.mark.parametrize("place", [0, 20])
def test_memory_of_blocks_that_recompute_is_planned_too(place):
    kept, again = bench.measure_memory((bench.EAGER[place], replace(bench.EAGER[place], recompute=True)))
    assert again["measured"] < kept["measured"]
    assert abs(again["error"]) <= MOST, f"{again['predicted']:,} predicted, {again['measured']:,} measured"


@pytest.mark.parametrize("place", [0, 15])
def test_memory_of_state_in_eight_bits_is_planned_too(place):
    plain, small = bench.measure_memory((bench.EAGER[place], replace(bench.EAGER[place], state="8bit")))
    assert small["measured"] < plain["measured"]
    assert abs(small["error"]) <= MOST, f"{small['predicted']:,} predicted, {small['measured']:,} measured"


def test_memory_of_two_ranks_is_within_three_percent(monkeypatch):
    monkeypatch.setattr(bench, "_run_ranks", lambda size, *job: on_ranks(size, bench.main, *job))  # without imports
    shapes = ((256, 512, 2), *((32, 8_192, zero) for zero in (0, 1, 2, 3)))  # each of three moments decides in one
    rows = bench.measure_memory(
        tuple(case for case in bench.RANKS if (case.context, case.vocab_size, case.zero) in shapes)
    )
    assert {row["zero"] for row in rows} == {0, 1, 2, 3}
    assert {row["moment"] for row in rows} >= {"head", "exchange", "optimizer"}
    for row in rows:
        assert abs(row["error"]) <= MOST, row


def test_the_grid_is_wide_enough():
    assert len(bench.EAGER) + len(bench.RANKS) >= 24
    for name in ("depth", "width", "rows", "context", "vocab_size", "dtype", "family", "documents", "micro_batches"):
        assert len({getattr(case, name) for case in bench.EAGER}) >= 2, name
    assert {case.logits for case in bench.EAGER} == {"chunked", "whole"}
    assert not any(case.compiled for case in bench.EAGER + bench.RANKS)
