"""What steps ran with, and the dtype in which they are replayed."""

import json

import pytest
import torch

from fledgling.config import RunConfig
from fledgling.runtime import device
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
        ("float16", "bfloat16", "float16"),  # the recipe reason it
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


def make_entries(**values):
    return {"history": [{"after_step": 0, "recipe": "", "machine": {}, **values}]}


@pytest.mark.parametrize(
    ("values", "notice", "compiled", "native"),
    [
        ({"compiled": False, "native": True}, "sft: float32, compiled, peak 2 GFLOP/s measured", False, True),
        ({"compiled": "yes"}, "sft: float32, compiled, peak 2 GFLOP/s measured", True, None),
        ({}, "sft: float32, not compiled (no compiler found, or switched off), peak 2 GFLOP/s measured", False, None),
        ({}, "sft: resumed", None, None),
    ],
)
def test_a_segment_reads_whether_its_steps_were_compiled_or_its_notice_reason_it(
    monkeypatch, tmp_path, values, notice, compiled, native
):
    (tmp_path / "sft").mkdir()
    lines = [{"step": 0, "text": notice}, {"step": 9, "text": "sft: float32, compiled, peak 1 GFLOP/s measured"}]
    (tmp_path / "sft/notices.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(segment, "list_stage_checkpoints", lambda run_dir, stage: [tmp_path])
    monkeypatch.setattr(segment, "is_usable", lambda path: True)
    monkeypatch.setattr(segment.checkpoint, "read_checkpoint_state", lambda path: make_entries(**values))
    found = segment.find_segment(tmp_path, "sft", 2)
    assert (found.compiled, found.native) == (compiled, native)


@pytest.mark.parametrize(
    ("setting", "trained", "has_compiler", "replayed", "reason"),
    [
        ("auto", True, True, "auto", ""),
        ("auto", False, True, "off", ""),  # where it was trained there was none
        ("on", True, False, "off", "trained compiled, and there is no compiler here"),
        ("auto", None, False, "off", "whether they were compiled is not recorded, and there is no compiler here"),
        ("off", None, False, "off", ""),
    ],
)
def test_steps_are_replayed_compiled_as_they_were_or_it_is_named(
    monkeypatch, setting, trained, has_compiler, replayed, reason
):
    monkeypatch.setattr(device, "find_cxx_compiler", lambda: "g++" if has_compiler else None)
    given, found = RunConfig(device="cpu", dtype="float32", compile=setting), Segment(None, {}, None, compiled=trained)
    assert segment.choose_replayed_run(given, found).compile == replayed
    assert segment.find_other_rounding(given, found) == reason


@pytest.mark.parametrize(("recorded", "here"), [(True, None), (None, "library"), (True, "library")])
def test_native_kernels_that_are_gone_are_named(monkeypatch, recorded, here):
    monkeypatch.setattr(segment, "load_native_library", lambda: here)
    given, found = RunConfig(device="cpu", compile="off"), Segment(None, {}, None, native=recorded)
    expected = "sampled with native kernels, and without them here" if recorded and not here else ""
    assert segment.find_other_rounding(given, found) == expected
