"""What an adapter trains and keeps, counted from configurations, equals the tensors of the model that has it."""

import pytest

from fledgling.config import AdapterConfig, ModelConfig, OptimizerConfig, StageConfig
from fledgling.model.adapter import attach_adapter, is_adapter_name
from fledgling.model.transformer import Transformer
from fledgling.plan.adapter import (
    activation_bytes,
    adapter_shapes,
    dequantized_bytes,
    parameter_bytes,
    trained_shapes,
)
from fledgling.plan.stage_step import one_row_step, stage_step

CONFIG = ModelConfig(vocab_size=50, depth=2, width=64, heads=2, context=16)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_names_and_shapes_are_those_of_the_model(method):
    adapter = AdapterConfig(method, rank=3)
    model = Transformer(CONFIG)
    attach_adapter(model, adapter, CONFIG)
    own = {name: tuple(value.shape) for name, value in model.named_parameters() if is_adapter_name(name)}
    assert adapter_shapes(CONFIG, adapter) == trained_shapes(CONFIG, adapter) == own
    assert parameter_bytes(CONFIG, adapter) == sum(4 * value.numel() for value in model.parameters())
    assert dequantized_bytes(CONFIG, adapter, 2) == {}


def test_without_an_adapter_the_weights_are_trained():
    shapes = {name: tuple(value.shape) for name, value in Transformer(CONFIG).named_parameters()}
    assert trained_shapes(CONFIG, None) == shapes
    assert activation_bytes(CONFIG, None, 100, 4) == 0 and dequantized_bytes(CONFIG, None, 4) == {}


def test_quantized_matrices_take_their_bits_and_scales():
    whole = AdapterConfig("lora", rank=3)
    matrices = CONFIG.block_matrices().values()
    for name, bits, group in (("int8", 8, 64), ("int4", 4, 32)):
        adapter = AdapterConfig("lora", rank=3, quantization=name)
        saved = sum(out * columns * (4 - bits / 8 - 2 / group) for out, columns in matrices)
        assert parameter_bytes(CONFIG, whole) - parameter_bytes(CONFIG, adapter) == saved
        assert dequantized_bytes(CONFIG, adapter, 2)["dequantized"] > 2 * max(
            out * columns for out, columns in matrices
        )


def test_a_token_keeps_the_ranks_and_of_dora_the_products_too():
    adapted = AdapterConfig("lora", rank=3).select_matrices(CONFIG).values()
    assert activation_bytes(CONFIG, AdapterConfig("lora", rank=3), 10, 2) == 10 * 2 * 3 * len(adapted)
    more = activation_bytes(CONFIG, AdapterConfig("dora", rank=3), 10, 2) - 10 * 2 * 3 * len(adapted)
    assert more == 10 * 2 * sum(out for out, _ in adapted)


def test_blocks_that_are_not_compiled_are_not_counted_as_compiled():
    def counts_as_compiled(adapter: AdapterConfig | None, kind: str, dtype: str) -> bool:
        step = one_row_step(OptimizerConfig(), CONFIG, 1, kind, dtype, compiled=True)
        return stage_step(step, StageConfig(), adapter).compiled

    lora, qlora = AdapterConfig("lora"), AdapterConfig("lora", quantization="int4")
    assert counts_as_compiled(None, "cpu", "bfloat16") and counts_as_compiled(lora, "cpu", "float32")
    assert counts_as_compiled(lora, "cuda", "bfloat16") and not counts_as_compiled(lora, "cpu", "bfloat16")
    assert not counts_as_compiled(qlora, "cpu", "float32") and not counts_as_compiled(qlora, "cuda", "bfloat16")
