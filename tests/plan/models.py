"""Model configurations of the planner's tests."""

from fledgling.config import ModelTable
from fledgling.model.config import ModelConfig, config_from_table


def config(depth: int, vocab_size: int = 65_536, context: int = 2_048, **pinned) -> ModelConfig:
    """Returns the model of a depth, by default with the published vocabulary and context."""
    return config_from_table(ModelTable(depth=depth, context=context, **pinned), vocab_size)
