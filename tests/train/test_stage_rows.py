"""Mixtures over files: one pass, epochs, missing sets named before any work, runs over made-up sets."""

import json
import math
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fledgling.config import ModelConfig, StageConfig, UserError, load_recipe
from fledgling.plan.horizon import compute_horizon
from fledgling.plan.stage_length import fixed_rows
from fledgling.record import read_jsonl
from fledgling.record.checkpoint import find_latest_checkpoint, read_checkpoint_state
from fledgling.runtime import device
from fledgling.speedrun.stages import run_stages
from fledgling.tasks.exam_names import exam_names
from fledgling.train.data_preparer import DataPreparer, split_mixture
from fledgling.train.hooks import NO_EVALS
from fledgling.train.loop import TrainingStopped
from fledgling.train.run import run_stage
from fledgling.train.saver import CheckpointSaver
from fledgling.train.stage_rows import RowsRequest, prepare_stage_rows, require_data
from tests.all_stages import make_all_stages_recipe
from tests.made_up_sets import REAL, needs_real_data, write_public_sets, write_rows

CONTEXT = 128  # of the recipe of all stages
MODEL = ModelConfig(depth=2, context=CONTEXT).resolve(300)
SETS = {"smoltalk": 0.47, "gsm8k": 0.3, "arc_easy": 0.1, "arc_challenge": 0.08, "mmlu": 0.05}


def weights(mixture):
    return "{" + ", ".join(f'"{name}" = {weight}' for name, weight in mixture.items()) + "}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A preparer over made-up sets, and its tokenizer."""
    folder = tmp_path_factory.mktemp("mix")
    recipe = make_all_stages_recipe(folder, **{"run.data_dir": write_public_sets(folder / "data")})
    preparer = DataPreparer(recipe, folder / "run")
    return preparer, preparer.load_or_train_tokenizer()


def test_a_mixture_has_three_kinds_of_sources():
    parts = split_mixture(
        {"embedded": 1.0, "spelling": 1.0, "gsm8k": 1.0, "chat:a.jsonl": 1.0, "questions:b": 1.0, "mmlu": 0.0}
    )
    assert list(parts.documents) == ["embedded"] and list(parts.tasks) == ["spelling"]
    assert list(parts.conversations) == ["gsm8k", "chat:a.jsonl", "questions:b"]


def test_one_pass_ends_when_the_first_set_is_read_once(prepared):
    preparer, tokenizer = prepared
    rows = prepare_stage_rows(RowsRequest("sft", StageConfig(mixture=SETS), MODEL, 4), preparer, tokenizer)
    total = sum(SETS.values())
    passes = {
        name: len(source) / (SETS[name] / total * 4) for name, (source, _) in zip(SETS, rows.sources, strict=True)
    }
    assert rows.steps == int(min(passes.values())) and rows.steps >= 1
    assert [weight for _, weight in rows.sources] == list(SETS.values())
    alone = prepare_stage_rows(RowsRequest("sft", StageConfig(mixture={"gsm8k": 1.0}), MODEL, 1), preparer, tokenizer)
    assert alone.steps == len(alone.sources[0][0])
    pinned = prepare_stage_rows(RowsRequest("sft", StageConfig(mixture=SETS, steps=9), MODEL, 4), preparer, tokenizer)
    assert pinned.steps == 9


def test_conversations_that_are_gone_have_the_rows_and_the_size_of_their_tokens(prepared):
    first, tokenizer = prepared
    file = Path(first.data_dir) / "evals/gsm8k/train.jsonl"
    (shard, _), size = first.conversation_shard("gsm8k", None, tokenizer), first.measure_source("gsm8k", tokenizer, 32)
    began_with = {"gsm8k": first.documents.prepared.used_inputs["gsm8k"]}
    recipe, messages = make_all_stages_recipe(first.run_dir.parent, **{"run.data_dir": first.data_dir}), []
    file.rename(file.with_suffix(".away"))
    try:
        without = DataPreparer(recipe, first.run_dir / "none")
        asks = (without.count_source_bytes, lambda name: without.measure_source(name, tokenizer, 32))
        for ask in (*asks, lambda name: without.require_sources([], [name])):
            with pytest.raises(UserError, match="fledgling data fetch gsm8k"):
                ask("gsm8k")
        for pinned in (began_with, {}):  # a stage that is resumed, and one that starts
            later = DataPreparer(recipe, first.run_dir, messages.append)
            later.documents.prepared.pinned = pinned
            later.require_sources([], ["gsm8k"])
            assert later.count_source_bytes("gsm8k") > 0 and later.measure_source("gsm8k", tokenizer, 32) == size
            kept, part = later.conversation_shard("gsm8k", None, tokenizer)
            assert (kept.directory, part) == (shard.directory, None)
            assert later.documents.prepared.used_inputs == began_with
            assert "the tokens that the run has of it are read" in messages[-1]
    finally:
        file.with_suffix(".away").rename(file)


def test_the_tokens_of_an_environment_that_is_gone_are_found_again(prepared, tmp_path):
    first, tokenizer = prepared
    tasks = {"env:guessing": 1.0}
    shard = first.task_shard("sft", tasks, 200, tokenizer)
    later = DataPreparer(make_all_stages_recipe(tmp_path), first.run_dir)
    later.documents.prepared.pinned = {"sft tasks": first.documents.prepared.used_inputs["sft tasks"]}
    assert later.task_shard("sft", {"env:gone.py:Guess": 1.0}, 200, tokenizer).directory == shard.directory
    with pytest.raises(UserError, match=r"gone\.py"):
        DataPreparer(make_all_stages_recipe(tmp_path), first.run_dir).task_shard(
            "sft", {"env:gone.py:Guess": 1.0}, 200, tokenizer
        )


def test_generated_tasks_last_as_long_as_the_others(prepared):
    preparer, tokenizer = prepared
    with pytest.raises(UserError, match=r"sft.steps is not set.*spelling.*sft.steps=300"):
        prepare_stage_rows(RowsRequest("sft", StageConfig(mixture={"spelling": 1.0}), MODEL, 4), preparer, tokenizer)
    half = StageConfig(mixture={"gsm8k": 0.5, "spelling": 0.5})
    rows = prepare_stage_rows(RowsRequest("sft", half, MODEL, 2), preparer, tokenizer)
    assert rows.steps == len(rows.sources[1][0])  # a row of each to a step


def test_an_open_batch_holds_as_many_examples_as_the_recipe_says(prepared):
    preparer, tokenizer = prepared
    mixture = {"gsm8k": 0.5, "arc_easy": 0.25, "spelling": 0.25}
    table = StageConfig(mixture=mixture, mixture_unit="examples", examples_per_step=8)
    found = prepare_stage_rows(RowsRequest("sft", table, MODEL, None), preparer, tokenizer)
    sizes = {name: preparer.measure_source(name, tokenizer, CONTEXT) for name in mixture}
    filled = 8 * sum(weight * sizes[name].rows for name, weight in mixture.items())
    assert found.rows_per_step == 2 ** round(math.log2(filled)) > 1
    assert sizes["gsm8k"].examples == 40 and sizes["spelling"].examples == math.inf
    rows = {"gsm8k": len(found.sources[1][0]), "arc_easy": len(found.sources[2][0])}
    shares = {name: mixture[name] * sizes[name].rows * 8 / filled for name in rows}
    assert found.steps == int(min(rows[name] / shares[name] for name in rows) / found.rows_per_step)
    twice = prepare_stage_rows(RowsRequest("sft", replace(table, num_epochs=2.0), MODEL, None), preparer, tokenizer)
    assert twice.steps in (2 * found.steps, 2 * found.steps + 1)
    resumed = RowsRequest("sft", table, MODEL, 4, weights={**found.weights, "gsm8k": 9})
    fixed = prepare_stage_rows(resumed, preparer, tokenizer)
    assert fixed.rows_per_step == 4 and fixed.weights["gsm8k"] == 9, "a resumed stage measures nothing again"
    with pytest.raises(UserError, match=r"sft.batch_tokens=512 and sft.examples_per_step=8 both set the batch"):
        fixed_rows("sft", replace(table, batch_tokens=512), ModelConfig(depth=2).resolve(300))


def test_open_steps_of_a_pretraining_by_examples_read_the_tokens_of_its_depth(prepared):
    """They were as many as those of the depth's batch, of another size."""
    preparer, tokenizer = prepared
    table = StageConfig(mixture={"gsm8k": 1.0}, examples_per_step=8)
    by_depth = compute_horizon(MODEL)
    found = prepare_stage_rows(RowsRequest("pretrain", table, MODEL, None), preparer, tokenizer)
    assert found.rows_per_step * CONTEXT != by_depth.batch_tokens
    assert found.steps * found.rows_per_step * CONTEXT == pytest.approx(by_depth.tokens, rel=0.01)
    given = prepare_stage_rows(RowsRequest("pretrain", replace(table, steps=3), MODEL, None), preparer, tokenizer)
    assert given.steps == 3
    once = replace(table, num_epochs=1.0)
    epochs = prepare_stage_rows(RowsRequest("pretrain", once, MODEL, None), preparer, tokenizer)
    assert epochs.steps == len(epochs.sources[0][0]) // epochs.rows_per_step


def test_a_shard_has_each_row_of_its_set_once_and_is_written_once(prepared):
    preparer, tokenizer = prepared
    shard = preparer.conversation_shard("gsm8k", 5, tokenizer)[0]
    texts = [tokenizer.decode(shard.read_tokens(i, 0, int(shard.lengths[i]))[0].tolist()) for i in range(len(shard))]
    assert (
        len(shard) == len(set(texts)) == 40
        and preparer.conversation_shard("gsm8k", 10**6, tokenizer)[0].directory == shard.directory
    )
    tokens, mask = shard.read_tokens(0, 0, int(shard.lengths[0]))
    outputs = np.flatnonzero(tokens == tokenizer.output_start)
    assert len(outputs) and not mask[outputs].any() and mask.any()


def test_a_few_rows_that_are_no_conversation_are_left_out_and_logged(tmp_path):
    conversation = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}
    empty = {"messages": [conversation["messages"][0], {"role": "assistant", "content": " "}]}
    notices = []
    write_rows(tmp_path / "smoltalk.jsonl", [conversation] * 200 + [empty])
    preparer = DataPreparer(
        make_all_stages_recipe(tmp_path, **{"run.data_dir": tmp_path}), tmp_path / "run", notices.append
    )
    assert len(preparer.conversation_shard("smoltalk", None, preparer.load_or_train_tokenizer())[0]) == 200
    assert [text for text in notices if "1 of 201 rows left out" in text and "smoltalk.jsonl:201" in text]
    write_rows(tmp_path / "smoltalk.jsonl", [conversation] * 50 + [empty] * 50)
    with pytest.raises(UserError, match=r"smoltalk.jsonl:\d+: no message of the assistant"):
        preparer.conversation_shard("smoltalk", None, preparer.load_or_train_tokenizer())


def make_rows(kind, word):
    if kind == "questions":
        return [{"question": f"What is {word} {n}?", "answer": f"It is {n}."} for n in range(20)]
    turns = (("user", f"What is {word}?"), ("assistant", "It is."))
    return [{"messages": [{"role": role, "content": text} for role, text in turns]}] * 20


@pytest.mark.parametrize("kind", ["chat", "chat folder", "questions", "public set"])
def test_edited_conversations_are_prepared_again_and_unchanged_ones_found_again(prepared, tmp_path, kind):
    _, tokenizer = prepared
    file = tmp_path / "smoltalk" / "rows.jsonl"
    name = {"chat": f"chat:{file}", "chat folder": f"chat:{file.parent}", "questions": f"questions:{file}"}
    recipe = make_all_stages_recipe(tmp_path, **{"run.data_dir": tmp_path})
    found = []
    for word in ("Adam", "Adam", "Bert"):
        write_rows(file, make_rows(kind, word))
        os.utime(file, ns=(9, 9))
        messages = []
        fresh = DataPreparer(recipe, tmp_path / "run", messages.append)
        shard, _ = fresh.conversation_shard(name.get(kind, "smoltalk"), None, tokenizer)
        found.append((tokenizer.decode(shard.tokens.tolist()), "\n".join(messages), shard.directory))
    assert "Adam" in found[0][0] and found[1][2] == found[0][2] and "tokens found again in" in found[1][1]
    assert "Bert" in found[2][0] and "its text changed, so it is prepared again" in found[2][1]
    assert found[0][2].name in found[2][1], "where the earlier tokens are"


def test_generated_conversations_are_keyed_by_what_generates_them(prepared, tmp_path, monkeypatch):
    _, tokenizer = prepared
    messages = []
    fresh = DataPreparer(make_all_stages_recipe(tmp_path), tmp_path / "run", messages.append)
    first = fresh.task_shard("sft", {"spelling": 1.0}, 500, tokenizer).directory
    assert fresh.task_shard("sft", {"spelling": 1.0}, 500, tokenizer).directory == first
    monkeypatch.setattr("fledgling.train.data_preparer._digest_tasks", lambda: "another version of the generators")
    assert fresh.task_shard("sft", {"spelling": 1.0}, 500, tokenizer).directory != first
    assert any("sft tasks: its text changed, so it is prepared again" in message for message in messages)
    assert fresh.task_shard("sft", {"spelling": 1.0}, 900, tokenizer).directory not in (first, None)
    assert any("a setting, the part that is read or this program changed" in message for message in messages[-3:])


def test_a_restarted_stage_trains_on_the_edited_text_and_a_resumed_one_on_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
    text = tmp_path / "notes"
    text.mkdir()
    recipe = make_all_stages_recipe(
        tmp_path, **{"pretrain.mixture": f'{{"{text}" = 1.0}}', "tokenizer.sources": f'["{text}"]'}
    )

    def write(word):
        for n in range(60):
            name = chr(97 + n % 26) * (n // 26 + 1)
            (text / f"{n}.txt").write_text(f"The {word} note about {name} says that {name} is {name}. " * 9)

    def train(resume="auto", stop=False):
        monkeypatch.setattr(CheckpointSaver, "failed", property(lambda saver: stop))
        with nullcontext() if not stop else pytest.raises(TrainingStopped):
            run_stage(recipe, "pretrain", resume, quiet=True, hooks=NO_EVALS)
        notices = [line["text"] for line in read_jsonl(tmp_path / "run" / "pretrain" / "notices.jsonl")]
        [pinned] = read_checkpoint_state(find_latest_checkpoint(tmp_path / "run/pretrain/checkpoints"))["data"].values()
        return pinned["directories"], "\n".join(notices)

    write("first")
    first, _ = train(stop=True)
    write("second")
    resumed, notices = train()
    assert resumed == first and "its text changed since this stage began" in notices
    assert "tokenizer: kept, although its text changed" in notices
    second, notices = train("never")
    assert second != first and "its text changed and the tokenizer" not in notices
    assert "tokenizer: its text changed, so it is trained again" in notices and "so it is prepared again" in notices


@pytest.mark.parametrize("name", ["d12-1gpu", "d20-8xh100"])
def test_the_error_of_missing_data_says_what_to_fetch_before_any_work(name, tmp_path):
    data = write_public_sets(tmp_path / "data")
    write_rows(data / "fineweb-edu" / "a.jsonl", [{"text": "Some text."}])
    recipe = load_recipe(name, [f"run.data_dir={data}", f"run.out={tmp_path / 'run'}"])
    require_data(recipe, recipe.stages)
    assert exam_names(recipe.midtrain, recipe.sft.mixture) == ["mmlu", "gsm8k"]
    assert exam_names(recipe.rl, recipe.sft.mixture) == ["arc_easy", "arc_challenge", "gsm8k"]
    needed = {
        "fineweb-edu": "fineweb-edu",
        "smoltalk": "smoltalk",
        "mmlu": "evals/mmlu/mmlu_auxiliary_train.jsonl",
        "gsm8k": "evals/gsm8k/train.jsonl",
        "arc_easy": "evals/arc/arc_easy_train.jsonl",
        "arc_challenge": "evals/arc/arc_challenge_test.jsonl",
    }
    for missing, path in needed.items():
        (data / path).rename(data / "away")
        with pytest.raises(UserError, match=f"`fledgling data fetch {missing}`"):
            run_stages(recipe)
        (data / "away").rename(data / path)
    assert not (tmp_path / "run").exists()


def test_midtrain_sft_and_rl_run_over_public_sets(tmp_path):
    data = write_public_sets(tmp_path / "data")
    recipe = make_all_stages_recipe(
        tmp_path,
        **{
            "run.data_dir": data,
            "model.context": 256,  # a question of ARC with its choices is longer than 128 tokens of this tokenizer
            "pretrain.steps": 2,
            "midtrain.steps": "none",
            "midtrain.mixture": weights({"smoltalk": 0.8, "mmlu": 0.1, "gsm8k": 0.1}),
            "sft.steps": "none",
            "sft.mixture": weights({name: SETS[name] for name in ("smoltalk", "gsm8k", "arc_easy", "arc_challenge")}),
            "rl.steps": 2,
            "rl.tasks": weights({"gsm8k": 0.5, "arc_easy": 0.5}),
        },
    )
    assert run_stages(recipe, quiet=True) == ["pretrain", "midtrain", "sft", "rl"]
    for stage, names in (("midtrain", {"mmlu", "gsm8k"}), ("sft", {"gsm8k", "arc_easy", "arc_challenge"})):
        lines = read_jsonl(tmp_path / "run" / stage / "evals.jsonl")
        assert names <= {line["name"] for line in lines}
        assert all(np.isfinite(line["loss"]) for line in read_jsonl(tmp_path / "run" / stage / "metrics.jsonl"))
    rewards = [line["reward"] for line in read_jsonl(tmp_path / "run" / "rl" / "metrics.jsonl")]
    assert len(rewards) == 2 and all(0 <= reward <= 1 for reward in rewards)
    kinds = [
        json.loads(path.read_text())["tokens"] for path in (tmp_path / "run/data").glob("gsm8k-rows-*/manifest.json")
    ]
    assert len(kinds) == 1  # midtrain and sft read the same shard


@needs_real_data
def test_gsm8k_and_arc_as_published_make_a_mixture(tmp_path):
    mixture = weights({"gsm8k": 0.7, "arc_easy": 0.2, "arc_challenge": 0.1})
    recipe = make_all_stages_recipe(
        tmp_path, **{"run.data_dir": REAL, "sft.mixture": mixture, "sft.steps": 2, "stages": '["sft"]'}
    )
    assert run_stage(recipe, "sft", quiet=True)
    names = {line["name"] for line in read_jsonl(tmp_path / "run" / "sft" / "evals.jsonl")}
    assert {"gsm8k", "arc_easy", "arc_challenge"} <= names
