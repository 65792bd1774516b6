"""What steps ran with, and the dtype in which they are replayed."""

import json

import pytest
import torch

from fledgling.config import RunConfig
from fledgling.runtime.device import DeviceSetup
from fledgling.verify import segment
from fledgling.verify.segment import Segment, choose_replayed_dtype

MIXED = DeviceSetup(torch.float32, False, 0.0, answer_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("given", "recorded", "replayed"),
    [
        ("auto", "float32", "auto"),  # as here
        ("auto", "bfloat16", "bfloat16"),  # of another processor
        ("auto", None, "bfloat16"),  # an earlier version trained in the dtype of its answers
        ("float16", "bfloat16", "float16"),  # the recipe says it
    ],
)
def test_steps_are_replayed_in_the_dtype_that_they_were_made_in(monkeypatch, given, recorded, replayed):
    monkeypatch.setattr(segment, "choose_setup", lambda run, world: MIXED)
    assert choose_replayed_dtype(RunConfig(dtype=given), Segment(None, {}, None, recorded)) == replayed


def test_a_segment_reads_the_dtype_of_its_steps_and_no_other_word(monkeypatch, tmp_path):
    entries = [
        {"after_step": 0, "recipe": "", "machine": {}},
        {"after_step": 2, "recipe": "", "machine": {}, "dtypes": ["float32", "bfloat16"]},
        {"after_step": 4, "recipe": "", "machine": {}, "dtypes": ["../float64"]},
    ]
    state = json.loads(json.dumps({"history": entries}))
    monkeypatch.setattr(segment, "list_stage_checkpoints", lambda run_dir, stage: [tmp_path])
    monkeypatch.setattr(segment, "is_usable", lambda path: True)
    monkeypatch.setattr(segment.checkpoint, "read_checkpoint_state", lambda path: state)
    found = [segment.find_segment(tmp_path, "sft", step).dtype for step in (1, 2, 5)]
    assert found == [None, "float32", None]
