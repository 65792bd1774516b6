"""The exams of a stage: dev wordings at every measurement, the test at the end, and what is left out."""

from fledgling.record import read_jsonl
from fledgling.runtime import device
from fledgling.train.hooks import NO_EVALS
from fledgling.train.run import run_stage
from tests.all_stages import make_all_stages_recipe


def test_the_test_wordings_are_asked_at_the_end_only_and_every_line_says_what_is_independent(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
    recipe = make_all_stages_recipe(
        tmp_path,
        **{
            "stages": '["pretrain", "rl"]',
            "rl.eval_questions": 8,
            "rl.tasks": "{identity = 0.5, stdlib = 0.5}",
            "rl.steps": 1,
            "sft.mixture": "{identity = 0.5, stdlib = 0.5}",
        },
    )
    run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    run_stage(recipe, "rl", quiet=True)
    lines = read_jsonl(tmp_path / "run" / "rl" / "evals.jsonl")
    at_start, at_end = ({(e["name"], e["n"]) for e in lines if e["step"] == step} for step in (0, 1))
    few = {("identity_dev", 2), ("stdlib_dev", 2), ("stdlib_practice", 2)}
    assert {pair for pair in at_start if pair[0][:3] in ("ide", "std")} == few
    at_the_end = {("identity_test", 8), ("stdlib_test", 8), ("stdlib_practice", 8)}
    assert {pair for pair in at_end if pair[0][:3] in ("ide", "std")} == few | at_the_end
    clusters = {(e["name"], e["n"]): (e["clusters"], e["cluster_unit"]) for e in lines}
    assert clusters["stdlib_test", 8] == (8, "wordings") and clusters["identity_test", 8] == (8, "wordings")
    assert {e["cluster_unit"] for e in lines if e["name"] == "bits_per_byte"} == {"documents"}
    notices = [line["text"] for line in read_jsonl(tmp_path / "run" / "rl" / "notices.jsonl")]
    assert [text for text in notices if "no exam in practice wordings of identity" in text]
