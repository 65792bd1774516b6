"""Which tasks a stage is examined on: those it learns and those it practises, each once."""

from fledgling.config import RLConfig, StageConfig
from fledgling.tasks.exam_names import exam_names

SFT = {"arithmetic": 0.5, "smoltalk": 0.3, "gsm8k": 0.2, "counting": 0.0}


def test_tasks_of_the_mixture_are_asked_and_texts_are_not():
    assert exam_names(StageConfig(mixture=SFT), {"spelling": 1.0}) == ["arithmetic", "gsm8k"]
    assert exam_names(StageConfig(), {"spelling": 1.0}) == ["spelling"]


def test_reinforcement_learning_is_asked_what_it_practises_too():
    config = RLConfig(tasks={"spelling": 1.0, "env:guessing": 1.0})
    assert exam_names(config, SFT) == ["arithmetic", "spelling", "gsm8k", "env:guessing"]
