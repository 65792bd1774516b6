"""A step on meta tensors changes nothing for the steps after it."""

import pytest
import torch

from fledgling.config import load_recipe
from fledgling.model import logprob, transformer
from fledgling.train.trial_step import trace_step
from tests.fast_run import write_recipe


@pytest.mark.parametrize("name", ["pretrain", "rl"])
def test_what_was_compiled_before_a_step_is_traced_is_compiled_after_it(name, tmp_path, monkeypatch):
    """A run with a budget measures its speed in compiled steps, and is then checked as every run is."""
    compiled = []

    def compile_graph(graph, inputs):
        compiled.append(graph)
        return graph

    torch.compiler.reset()
    kernels = logprob.LogprobKernels(softcap_exp=torch.compile(logprob.softcap_exp, backend=compile_graph))
    monkeypatch.setattr(transformer, "EAGER", kernels)
    recipe = load_recipe(write_recipe(tmp_path))
    trace_step(recipe, name, recipe.resolve_model(), torch.float32)
    assert not compiled, "nothing has values yet"
    hidden, weight = torch.ones(3, 8), torch.ones(5, 8)
    logprob.cross_entropy_sum(hidden, weight, torch.zeros(3, dtype=torch.long), 15.0, 0.0, kernels=kernels)
    assert len(compiled) == 1
