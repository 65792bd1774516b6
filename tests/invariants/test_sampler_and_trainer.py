"""Invariant: the sampler's log-probabilities are the trainer's, so that ratios of an on-policy step are 1."""

import pytest
import torch

from fledgling.config import ModelConfig, RLConfig
from fledgling.data.batch import IGNORE_INDEX
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.model.logprob import target_logprobs
from fledgling.model.transformer import Transformer
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.loss import policy_gradient_loss
from fledgling.train.rollout import Rollout, pack_rollouts


@pytest.mark.parametrize("seed", [1, 57])  # with these an answer ends in BOS, next to the BOS of the next rollout
def test_log_probabilities_agree_over_packed_rollouts(seed):
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog " * 20], 330, letter_tokens=True)
    model = Transformer(ModelConfig(tokenizer.vocab_size, 2, 64, 2, 2, 96))
    model.initialize(0)
    torch.nn.init.normal_(model.head.weight, std=0.05)
    for block in model.blocks:
        torch.nn.init.normal_(block.attention.o_proj.weight, std=0.1)
        torch.nn.init.normal_(block.mlp.fc2.weight, std=0.1)
    prompts = [[tokenizer.bos, *tokenizer.encode("fox " * n)] for n in (1, 3, 7, 2, 5)]
    answers = Engine(model, tokenizer).generate(prompts, SamplingParams(max_new_tokens=20, seed=5))
    rollouts = [Rollout.from_completion(p, a, reward=0.0, advantage=1.0) for p, a in zip(prompts, answers, strict=True)]
    compared = 0
    for batch in pack_rollouts(rollouts, 95, 2, tokenizer.bos):
        hidden = model(batch.tokens, batch.document_ids)
        trained = target_logprobs(hidden, model.head.weight, batch.targets, 15.0, 0.0)
        kept = batch.targets != IGNORE_INDEX
        compared += int(kept.sum())
        torch.testing.assert_close(trained[kept], batch.old_logprobs[kept], rtol=0, atol=1e-4)
        # with ratio 1 everywhere the loss is minus the number of sampled tokens times the advantage
        assert abs(float(policy_gradient_loss(model, batch, RLConfig()).detach()) + int(kept.sum())) < 1e-2
    assert compared == sum(not f for a in answers for f in a.forced)
