"""Model configurations of the planner's tests."""

from fledgling.config import ModelConfig


def config(depth: int, vocab_size: int = 65_536, context: int = 2_048, **pinned) -> ModelConfig:
    """Returns the published kind of model of a depth, by default with the published vocabulary and context."""
    return ModelConfig(depth=depth, context=context, **{"preset": "nanochat-2025", **pinned}).resolve(vocab_size)
