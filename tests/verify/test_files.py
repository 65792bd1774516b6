"""Files and records by their hashes: each change is named, what a run does itself is none."""

import json
import shutil

import pytest

from fledgling.record import atomic_directory
from fledgling.record.jsonl import JsonlWriter
from fledgling.record.seal import SEAL, seal_run
from fledgling.verify.files import (
    check_checkpoints,
    check_prepared_data,
    check_stages,
    is_usable,
    list_stage_checkpoints,
)
from fledgling.verify.seals import check_seals, compute_root, list_deleted


def show(text):
    pass


def find_problems(run):
    return [
        text for check in (check_checkpoints, check_prepared_data, check_seals) for text in check(run, show).problems
    ]


def test_a_checkpoint_is_hashed_once_and_again_after_a_file_of_it_changed(copy, monkeypatch):
    hashed, hash_file = [], atomic_directory.hash_file
    monkeypatch.setattr(atomic_directory, "hash_file", lambda path: hashed.append(path.name) or hash_file(path))
    path = list_stage_checkpoints(copy, "sft")[-1]
    assert is_usable(path) and is_usable(path) and hashed.count("model.safetensors") == 1
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not is_usable(path) and hashed.count("model.safetensors") == 2
    weights.write_bytes(content)
    assert is_usable(path)


def change_line(path, number, change):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1 : number] = change(lines[number - 1])
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda line: [line.replace(b'"loss"', b'"Loss"')], "pretrain/metrics.jsonl: line 3 changed"),
        (lambda line: [], "pretrain/metrics.jsonl: line 3 removed"),
        (lambda line: [b"{}\n", line], "pretrain/metrics.jsonl: line 3 inserted"),
        (lambda line: [b"\n", line], "pretrain/metrics.jsonl: line 3 is blank: not as a run writes it"),
    ],
)
def test_a_line_that_was_changed_removed_or_inserted_is_named(copy, change, expected):
    change_line(copy / "pretrain/metrics.jsonl", 3, change)
    assert find_problems(copy) == [expected]


@pytest.mark.parametrize("name", ["metrics", "samples", "notices", "evals"])
def test_bytes_after_the_last_line_of_a_record_are_named(copy, name):
    """NUL bytes, as a power cut leaves them: a problem where nothing is written any more, a note elsewhere."""
    with open(copy / f"sft/{name}.jsonl", "ab") as file:
        file.write(b" \n" * (name != "metrics") + b"\0" * 4096)
    line = f"sft/{name}.jsonl: 4,096 bytes after its last line: not as a run writes it"
    check = check_seals(copy, show)
    assert (line in check.problems, line in check.notes) == (name == "metrics", name != "metrics")
    assert any("is blank" in note for note in check.notes) == (name != "metrics")
    (copy / "sft/done.json").unlink()
    assert line in check_seals(copy, show).notes


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("sft/evals.jsonl", "sft/evals.jsonl: line 1 changed"),
        ("rl/done.json", "rl/done.json was changed"),
        ("rl/plan.json", "rl/plan.json was changed"),
        ("plan.json", "plan.json was changed: not what the seal of the run says"),
        ("environment.json", "environment.json was changed: not what the seal of the run says"),
        ("recipe.toml", "recipe.toml was changed: not what the seal of the run says"),
        ("seal.json", "seal.json of the run is corrupt"),
        ("data/{shard}/extra.bin", "extra.bin is not in manifest.json"),
        ("tokenizer/tokenizer.json", "tokenizer/tokenizer.json was changed"),
        ("sft/checkpoints/step-00000006/tokenizer.json", "tokenizer.json has"),
        ("sft/checkpoints/step-00000006/extra.bin", "extra.bin is not in manifest.json"),
        (f"sft/{SEAL}", "seal.json is corrupt"),
    ],
)
def test_a_file_that_was_changed_is_named(copy, path, expected):
    shard = sorted((copy / "data").glob("*/manifest.json"))[0].parent.name
    file = copy / path.replace("{shard}", shard)
    file.write_bytes((b"x" + file.read_bytes()) if file.exists() else b"x")
    assert any(expected in problem for problem in find_problems(copy)), find_problems(copy)


def test_given_weights_that_were_changed_are_named(copy):
    given = shutil.copytree(next((copy / "sft" / "checkpoints").glob("step-*")), copy / "init" / "step-00000000")
    assert find_problems(copy) == ["init/step-00000000 is not in the seal of the run"]
    seal_run(copy)
    assert find_problems(copy) == []
    with open(given / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert find_problems(copy) == ["init/step-00000000/model.safetensors does not match its SHA-256 in manifest.json"]


def test_a_seal_that_was_deleted_is_a_problem_and_an_older_run_has_none(copy):
    (copy / "sft" / SEAL).unlink()
    assert find_problems(copy) == [f"sft/{SEAL} is missing"]
    path = copy / "sft/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "data"}) + "\n" for line in lines))
    assert find_problems(copy) == [] and check_seals(copy, show).notes == [f"sft/{SEAL} is missing"]


def test_what_a_run_and_its_commands_do_later_is_no_change(copy):
    JsonlWriter(copy / "rl/evals.jsonl").append({"stage": "rl", "step": 6, "name": "core", "value": 0.1})
    shutil.rmtree(copy / "pretrain/checkpoints/step-00000004")
    (copy / "data/later").mkdir()
    assert find_problems(copy) == []
    notes = " ".join(check_seals(copy, show).notes)
    assert "1 line was added after the seal" in notes and "step-00000004 was deleted after the seal" in notes


def test_the_root_changes_with_every_seal(copy, run):
    assert compute_root(copy) == compute_root(run)
    (copy / "rl" / SEAL).write_text("{}")
    assert compute_root(copy) != compute_root(run)


@pytest.mark.parametrize("name", ["plan.json", "environment.json", "recipe.toml", "seal.json", "rl/plan.json"])
def test_a_file_of_the_run_that_was_deleted_is_named(copy, name):
    (copy / name).unlink()
    assert any(name in problem and ("gone" in problem or "missing" in problem) for problem in find_problems(copy))


@pytest.mark.parametrize(
    "seal",
    [
        {"lines": {"metrics": 5}, "files": {}},
        {"lines": {"metrics": [5]}, "files": {}},
        {"lines": {}, "files": {"rl/done.json": 1}},
        {"lines": [], "files": {}},
        [],
    ],
)
def test_a_seal_of_another_shape_is_corrupt(copy, seal):
    (copy / "sft" / SEAL).write_text(json.dumps(seal))
    assert find_problems(copy) == [f"sft/{SEAL} is corrupt"]


def test_a_stage_without_its_record_is_named(copy):
    assert check_stages(copy).verdict == "holds" and not check_stages(copy).notes
    (copy / "rl/metrics.jsonl").unlink()
    assert check_stages(copy).problems == [
        "rl has checkpoints and no metrics.jsonl: nothing shows where they come from"
    ]
    shutil.rmtree(copy / "rl")
    assert check_stages(copy).notes == ["rl, a stage of recipe.toml, has no record here"]
    shutil.copytree(copy / "sft/checkpoints", copy / "dpo/checkpoints")
    assert check_stages(copy).problems == [
        "dpo has checkpoints and no metrics.jsonl: nothing shows where they come from"
    ]


def test_links_and_files_of_others_are_notes(copy, tmp_path):
    path = sorted((copy / "sft/checkpoints").iterdir())[0]
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    (copy / "notes.txt").write_text("mine")
    notes = check_stages(copy).notes
    assert any(f"{path.name} is a link to" in note for note in notes) and "notes.txt is not a file of a run" in notes


@pytest.mark.parametrize("name", ["samples", "notices", "evals"])
def test_every_file_that_grew_after_the_seal_is_a_note(copy, name):
    JsonlWriter(copy / f"rl/{name}.jsonl").append({"step": 6, "text": "x"})
    assert find_problems(copy) == []
    assert any(f"rl/{name}.jsonl: 1 line was added" in note for note in check_seals(copy, show).notes)


def test_what_was_deleted_is_listed(copy):
    assert list_deleted(copy) == []
    shutil.rmtree(copy / "pretrain/checkpoints")
    shard = sorted((copy / "data").glob("*/manifest.json"))[0].parent
    shutil.rmtree(shard)
    assert list_deleted(copy) == [f"data/{shard.name}", "the checkpoints of pretrain"]


def test_the_seconds_of_a_run_with_a_budget_are_sealed_at_its_end_and_noted_before(copy):
    (copy / "forecast.json").write_text("{}")
    spent = copy / "spent.json"
    for content, note in (({"seconds": 5.0, "stage": "sft"}, True), ({"seconds": 9.0, "finished": True}, False)):
        spent.write_text(json.dumps(content))
        seal_run(copy)
        check = check_seals(copy, show)
        assert not check.problems and any("spent.json" in text for text in check.notes) is note, check
    for content in ({"seconds": 4.0, "finished": True}, {"seconds": 9.0}):
        spent.write_text(json.dumps(content))
        assert find_problems(copy) == ["spent.json was changed: not what the seal of the run says"]
    spent.unlink()
    assert find_problems(copy) == ["spent.json is gone"]


def test_a_file_that_several_stages_have_sealed_is_gone_once(copy):
    shutil.rmtree(copy / "data")
    check = check_seals(copy, show)
    notes = [note for note in check.notes if note.startswith("data/")]
    assert notes and len({note.split()[0] for note in notes}) == len(notes) and not check.problems
    assert any("which is in the seal of pretrain, " in note for note in notes)
    shutil.rmtree(copy / "tokenizer")
    problems = check_seals(copy, show).problems
    assert len(problems) == len({problem.split()[0] for problem in problems}) > 0
