"""Files outside a run that are edited or gone: verify names them, and replays what needs none of them."""

import json
import shutil
from pathlib import Path

import pytest

from fledgling.config import UserError, load_recipe
from fledgling.record import read_jsonl
from fledgling.runtime import device
from fledgling.speedrun.stages import run_stages
from fledgling.train.run import run_stage
from fledgling.train.stage_rows import require_data
from fledgling.verify import verify_run
from tests.fast_run import write_recipe

STAGES = ("pretrain", "sft", "dpo", "rl")


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat_rows(word: str) -> list[dict]:
    messages = [("user", "Say {n}."), ("assistant", f"It is {word} {{n}}.")]
    return [{"messages": [{"role": r, "content": t.format(n=n)} for r, t in messages]} for n in range(40)]


def question_rows(word: str) -> list[dict]:
    return [{"question": f"Which {word} is {n}?", "answer": str(n)} for n in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run whose later stages read conversations, pairs, questions and a reward from files, and these."""
    folder = tmp_path_factory.mktemp("edited")
    chat = write_rows(folder / "chat.jsonl", chat_rows("number"))
    questions = write_rows(folder / "questions.jsonl", question_rows("number"))
    rewards = f'{{task = 1.0, "{folder / "rewards.py"}:vowels" = 1.0}}'
    settings = [
        f"stages={json.dumps(STAGES)}",
        f'sft.mixture={{"chat:{chat}" = 1.0}}',
        f'rl.tasks={{"questions:{questions}" = 1.0}}',
        f"rl.rewards={rewards}",
        *(f"{stage}.steps=2" for stage in STAGES),
        *(f"{stage}.save_every=1" for stage in STAGES),
        *(f"{stage}.{key}=0" for stage in STAGES for key in ("eval_every", "sample_every")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e13)
        run_stages(load_recipe(write_recipe(folder), settings), quiet=True)
    return folder


def notes_of(run: Path) -> tuple[list[str], list[str], str]:
    result = verify_run(run, count=4, seconds=600, seed=1)
    checks = {check["name"]: check for check in result["checks"]}
    problems = [text for check in result["checks"] for text in check["problems"]]
    return problems, checks["steps replayed"]["notes"], result["verdict"]


EDITED = {
    "dpo.pairs": ("pairs.jsonl", lambda path: path.write_text(path.read_text().replace("It is", "It was"))),
    "rl.tasks questions:": ("questions.jsonl", lambda path: write_rows(path, question_rows("letter"))),
    "rl.rewards": ("rewards.py", lambda path: path.write_text(path.read_text().replace("/ 9", "/ 2"))),
}


def test_edited_files_are_named_and_their_steps_are_left_out(folder):
    before = {name: (folder / name).read_text() for name, _ in EDITED.values()}
    for name, edit in EDITED.values():
        edit(folder / name)
    try:
        problems, notes, verdict = notes_of(folder / "run")
    finally:
        for name, text in before.items():
            (folder / name).write_text(text)
    assert problems == [] and verdict.startswith("holds")
    for key, (name, _) in EDITED.items():
        place = f"not replayed: {key.partition('.')[0]} step "
        named = [note for note in notes if note.startswith(place) and f"{key}" in note]
        assert named and all(f"{name} is not what was trained on" in note for note in named), notes
    assert {note.split()[2] for note in notes if note.startswith("drawn after")} == {"pretrain", "sft"}


def test_files_that_are_gone_stop_no_check_of_another_stage(folder, tmp_path):
    for name in ("chat.jsonl", "pairs.jsonl", "questions.jsonl"):
        (folder / name).rename(tmp_path / name)
    try:
        problems, notes, verdict = notes_of(folder / "run")
    finally:
        for name in ("chat.jsonl", "pairs.jsonl", "questions.jsonl"):
            (tmp_path / name).rename(folder / name)
    assert problems == [] and verdict.startswith("holds")
    assert any(note.startswith("drawn after sft") for note in notes), "it is replayed from its tokens"
    assert any(note.startswith("not replayed: rl: ") and "questions.jsonl" in note for note in notes)
    assert any(note.startswith("not replayed: dpo") and "pairs.jsonl is not here" in note for note in notes)


def stop(run: Path, stage: str) -> None:
    """Makes a stage one that was stopped after its first step."""
    (run / stage / "done.json").unlink()
    shutil.rmtree(run / stage / "checkpoints/step-00000002")


@pytest.mark.parametrize("how", ["gone", "corrupt"])
def test_a_resumed_stage_keeps_the_tokens_of_conversations_that_are_gone(how, folder, tmp_path):
    run, chat = shutil.copytree(folder / "run", tmp_path / "run"), folder / "chat.jsonl"
    before = chat.read_text()
    stop(run, "sft")
    chat.unlink() if how == "gone" else chat.write_text("{\n" * 40)
    try:
        assert run_stage(load_recipe(run), "sft", quiet=True)
        shutil.rmtree(run / "data")
        with pytest.raises(UserError, match=r"chat\.jsonl"):
            require_data(load_recipe(run), ["sft"], {f"chat:{chat}": {"tokenizer": "x", "directories": ["gone"]}})
    finally:
        chat.write_text(before)
    first, second = (
        [line["loss"] for line in read_jsonl(path / "sft/metrics.jsonl")] for path in (folder / "run", run)
    )
    assert second == first, "the same steps as without the loss of the file"
    notices = [line["text"] for line in read_jsonl(run / "sft/notices.jsonl")]
    assert any("the tokens that the run has of it are read" in text for text in notices)


def test_steps_before_and_after_an_edit_are_distinguished(folder, tmp_path):
    run, pairs = shutil.copytree(folder / "run", tmp_path / "run"), folder / "pairs.jsonl"
    before = pairs.read_text()
    stop(run, "dpo")
    shutil.rmtree(run / "rl")
    EDITED["dpo.pairs"][1](pairs)
    try:
        assert run_stage(load_recipe(run), "dpo", quiet=True)
        problems, notes, verdict = notes_of(run)
    finally:
        pairs.write_text(before)
    assert problems == [] and verdict.startswith("holds")
    assert any(note.startswith("not replayed: dpo step 0: dpo.pairs") for note in notes)
    assert "drawn after dpo step 1: 2" in notes
