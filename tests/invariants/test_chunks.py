"""The planner, which may not import torch, counts the very chunks of logits that training makes."""

from fledgling.model import logprob
from fledgling.plan import memory


def test_the_planner_and_the_loss_agree_on_a_chunk():
    assert memory.CHUNK_VALUES == logprob.CHUNK_LOGITS
