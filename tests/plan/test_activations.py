"""Kept activations from shapes written out; `tests/invariants/test_planner.py` compares them with the allocator."""

import pytest

from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.plan import activations
from fledgling.plan.stage_step import one_row_step
from fledgling.plan.training_step import TrainingStep

CONFIG = ModelConfig(vocab_size=99, depth=1, width=32, heads=4, kv_heads=4, context=256)  # D = 8, F = 128


@pytest.mark.parametrize(("context", "window"), [(1, None), (300, None), (300, 1), (300, 90), (1024, 200)])
def test_scored_pairs_are_whole_blocks_of_queries_times_visible_keys(context, window):
    pairs = 0
    for query in range(context):
        block = query // activations.QUERY_BLOCK * activations.QUERY_BLOCK
        end = min(block + activations.QUERY_BLOCK, context)
        first = 0 if window is None else max(0, block - window + 1)
        pairs += end - first
    assert activations.count_scored_pairs(context, window) == pairs


def test_fp32_activations_are_the_tensors_of_a_block():
    rows, tokens = 3, 3 * 256
    kept = activations.eager_activation_bytes(
        CONFIG, TrainingStep(rows, 256, "float32", device="cpu", packed_documents=False)
    )
    assert kept["streams"] == 4 * tokens * (2 * 32 + 2)  # two inputs of norms with one statistic each
    assert kept["norms"] == 4 * tokens * 2 * 32
    assert kept["queries_keys_values"] == 4 * tokens * (2 * (32 + 4) + 3 * 32)  # inputs of two norms; q, k, v
    assert kept["feed_forward"] == 4 * tokens * 2 * 128  # before and after the activation
    pairs = 128 * 128 + 128 * 256
    assert kept["attention"] == 4 * rows * 4 * pairs + pairs + 4 * tokens * (32 + 4) + 4 * tokens * 32


@pytest.mark.parametrize("window", [None, 90])
def test_an_apple_gpu_keeps_the_weights_of_all_pairs(window):
    fused, kept = (
        activations.eager_activation_bytes(CONFIG, TrainingStep(3, 256, keeps_scores=scores, compiled=False), window)
        for scores in (False, True)
    )
    pairs = 256 * 256 if window is None else activations.count_masked_pairs(256, window)
    assert kept["attention"] - fused["attention"] == 4 * 3 * 4 * pairs
    steps = [one_row_step(OptimizerConfig(), CONFIG, 1, kind, "bfloat16", False) for kind in ("mps", "cuda", "cpu")]
    assert [step.keeps_scores for step in steps] == [True, False, False]


def test_masks_of_documents_are_one_byte_for_each_row():
    with_documents, without = (
        activations.eager_activation_bytes(
            CONFIG, TrainingStep(3, 256, "float32", device="cpu", packed_documents=documents)
        )["attention"]
        for documents in (True, False)
    )
    assert with_documents - without == 2 * activations.count_scored_pairs(256)


def test_attention_is_blockwise_on_a_cpu_and_for_short_rows():
    limit = activations.MAX_BLOCKWISE_CONTEXT
    assert activations.uses_blockwise_attention(limit, "cpu")
    assert not activations.uses_blockwise_attention(limit + 1, "cpu")
    assert not activations.uses_blockwise_attention(limit, "cuda")


def test_the_constants_are_those_of_attention():
    from fledgling.model import attention, window

    assert activations.WINDOW_PIECE == window.WINDOW_PIECE
    assert activations.QUERY_BLOCK == attention.QUERY_BLOCK
    assert activations.MAX_BLOCKWISE_CONTEXT == attention.MAX_BLOCKWISE_TRAINING


def test_the_backward_peak_of_relu2_is_the_stream_and_three_intermediates():
    assert activations.backward_peak_bytes(CONFIG, 100, 4) == 100 * 4 * (32 + 3 * 128)
