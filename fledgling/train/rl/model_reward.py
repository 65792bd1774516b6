"""A reward model as a part of the reward: "model:RUN" in rl.rewards scores an answer by a run's trained value head.

Such a run is made by `dpo.objective = "reward"` (train/dpo.py); its score is the value at an answer's last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from fledgling.config import ModelConfig, UserError
from fledgling.evals.chat import encode_question
from fledgling.export.checkpoint_weights import read_weights
from fledgling.infer.request import Completion
from fledgling.model.transformer import Transformer
from fledgling.record.checkpoint import load_checkpoint, resolve_checkpoint
from fledgling.tasks.task import Question
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.critic import CRITIC, attach_critic, get_critic

MODEL_PREFIX = "model:"  # followed by a run, a stage or a checkpoint


class Answered(Protocol):
    """A question with its answer, as `reward.Candidate` is."""

    @property
    def question(self) -> Question:
        """The question."""
        ...

    @property
    def completion(self) -> Completion:
        """The answer's tokens."""
        ...


def find_reward_model(spec: str) -> Path:
    """Returns the checkpoint that "model:RUN" names. Raises UserError if it is missing or scores nothing."""
    try:
        path = resolve_checkpoint(spec.removeprefix(MODEL_PREFIX))
    except UserError as error:
        raise UserError(f'rl.rewards "{spec}": {error}') from None
    if not (path / f"{CRITIC}.safetensors").is_file():
        raise UserError(
            f'rl.rewards "{spec}": {path} scores nothing; expected a run whose last stage is dpo with '
            'dpo.objective="reward"'
        )
    return path


class ModelReward:
    """Scores answers by a reward model."""

    def __init__(self, spec: str, tokenizer: Tokenizer, device: torch.device | str = "cpu") -> None:
        """Loads the model. Raises UserError for a checkpoint without a trained value head or of another tokenizer."""
        path = find_reward_model(spec)
        loaded = read_weights(path)
        if loaded.state.get("tokenizer") != tokenizer.fingerprint():
            raise UserError(
                f'rl.rewards "{spec}": its tokenizer is not that of this run; make both from one checkpoint'
            )
        self.spec, self.tokenizer, self.device = spec, tokenizer, torch.device(device)
        self.model = Transformer(ModelConfig.from_dict(loaded.state["model"]))
        attach_critic(self.model)
        head = load_checkpoint(path, (CRITIC,), check_hashes=False).tensors[CRITIC]
        self.model.load_state_dict({**loaded.merged, **head})
        self.model.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def scores(self, candidates: Sequence[Answered]) -> list[float]:
        """Returns one number per answer, computed alone, so that it depends on no other answer.

        An answer that does not fit the model's context is scored at its last token that does.
        """
        found = []
        for candidate in candidates:
            tokens = [*encode_question(self.tokenizer, candidate.question), *candidate.completion.tokens]
            row = torch.tensor([tokens[: self.model.config.context + 1]], device=self.device)
            values = get_critic(self.model)(self.model(row[:, :-1]), with_bias=False)
            found.append(float(values[0, -1]))
        return found

    def close(self) -> None:
        """Does nothing: there is no process."""
