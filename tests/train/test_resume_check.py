"""Resuming with changed settings, other weights or another tokenizer: what is rejected changes nothing."""

import hashlib
import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

from fledgling.cli import main
from fledgling.config import UserError, dump_toml, load_recipe, scaling_rules
from fledgling.plan.derive import derive_recipe, find_run_size, round_rate
from fledgling.plan.horizon import compute_horizon
from fledgling.record import checkpoint, read_jsonl, write_text
from fledgling.record.parent import describe_parent
from fledgling.text.tokenizer import Tokenizer
from fledgling.train import resume_check
from fledgling.train.derived_values import write_derived_values
from fledgling.train.run import run_stage
from tests.fast_run import write_recipe

LONGER = ("pretrain.steps=2", "pretrain.save_every=1", "sft.save_every=1", 'stages=["pretrain","sft"]')


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A pretrained run."""
    recipe = load_recipe(write_recipe(tmp_path_factory.mktemp("resume_check")), LONGER)
    assert run_stage(recipe, "pretrain", quiet=True)
    return Path(recipe.run.out)


@pytest.fixture
def done(finished, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def stopped(done) -> Path:
    """A copy that was stopped after its first step."""
    (done / "pretrain" / "done.json").unlink()
    shutil.rmtree(done / "pretrain" / "checkpoints" / "step-00000002")
    return done


def digests(folder: Path) -> dict[str, str]:
    """The content of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


REJECTED = (
    "model.depth=2",
    "model.context=32",
    "tokenizer.vocab_size=340",
    "pretrain.batch_tokens=256",
    "pretrain.mixture={embedded=1.0}",
    "optimizer.matrix_optimizer=adamw",
    "seed=2",
    "pretrain.steps=1",
)


@pytest.mark.parametrize("override", REJECTED)
def test_what_the_checkpoint_has_decided_is_rejected_and_nothing_is_written(override, stopped, capsys):
    before = digests(stopped)
    assert main(["train", "pretrain", str(stopped), "--set", override]) == 1
    line, *table = capsys.readouterr().err.strip().splitlines()
    name = override.partition("=")[0]
    assert line.startswith("error: pretrain cannot be resumed from ") and f"{name}=" in line and "run.out=DIR" in line
    assert table[0].split()[0] == "setting" and any(name in row and "rejected: " in row for row in table)
    assert digests(stopped) == before


def test_a_finished_stage_rejects_other_weights_and_keeps_its_settings(done, capsys):
    before = digests(done)
    assert main(["train", "pretrain", str(done), "--set", "model.depth=2"]) == 1
    assert "model.depth=2: it is 1 there" in capsys.readouterr().err
    assert main(["train", "pretrain", str(done), "--set", "pretrain.learning_rate=0.5"]) == 0
    printed = capsys.readouterr()
    assert "was done already" in printed.out and "ignored: pretrain is done" in printed.err
    assert digests(done) == before


def test_the_recipe_of_a_run_says_what_really_ran(stopped):
    overrides = ["pretrain.steps=3", "optimizer.matrix_lr=0.01", "pretrain.micro_batch_size=2"]
    assert run_stage(load_recipe(stopped, overrides), "pretrain", quiet=True)
    recorded = tomllib.loads((stopped / "recipe.toml").read_text())
    assert recorded["pretrain"]["steps"] == 3 and recorded["optimizer"]["matrix_lr"] == 0.01
    assert recorded["pretrain"]["micro_batch_size"] == 1  # larger ones are ignored
    metrics = read_jsonl(stopped / "pretrain" / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    notices = "\n".join(line["text"] for line in read_jsonl(stopped / "pretrain" / "notices.jsonl"))
    assert "optimizer.matrix_lr" in notices and "takes effect: from the next step on" in notices
    assert "pretrain.micro_batch_size" in notices and "ignored: a stage keeps its micro-batches" in notices
    assert run_stage(load_recipe(stopped, ["pretrain.steps=9"]), "sft", quiet=True)  # of a stage that is done
    assert tomllib.loads((stopped / "recipe.toml").read_text())["pretrain"]["steps"] == 3


def test_a_run_records_the_rates_that_rules_gave_it_and_keeps_them(stopped, monkeypatch):
    before = tomllib.loads((stopped / "recipe.toml").read_text())
    assert set(before["optimizer"]) >= {"matrix_lr", "embedding_lr", "head_lr", "scalar_lr", "weight_decay"}
    monkeypatch.setattr(scaling_rules, "MATRIX_LR", 0.5)
    monkeypatch.setattr(scaling_rules, "TIMESCALE", 0.01)
    monkeypatch.setattr(scaling_rules, "SFT_LR", 0.25)
    opened = [f"optimizer.{field}=none" for field in ("matrix_lr", "head_lr", "weight_decay")]
    assert run_stage(load_recipe(stopped, opened), "pretrain", quiet=True)
    assert run_stage(load_recipe(stopped, opened), "sft", quiet=True)
    after = tomllib.loads((stopped / "recipe.toml").read_text())
    assert after["optimizer"] == before["optimizer"] and after["pretrain"] == before["pretrain"]
    assert "learning_rate" not in before["sft"] and 0 < after["sft"]["learning_rate"] <= 0.25
    derived = json.loads((stopped / "derived.json").read_text())
    assert derived["sft.learning_rate"] == after["sft"]["learning_rate"] and "sft.warmup_steps" not in derived
    assert derived["optimizer.matrix_lr"] == before["optimizer"]["matrix_lr"]
    newest = checkpoint.find_latest_checkpoint(stopped / "sft" / "checkpoints")
    state = checkpoint.read_checkpoint_state(newest)
    for text in (state["recipe"], state["history"][-1]["recipe"]):
        assert tomllib.loads(text)["sft"] == after["sft"]
    notices = "\n".join(line["text"] for line in read_jsonl(stopped / "sft" / "notices.jsonl"))
    assert "sft: by the rules of fledgling/config/scaling_rules.py: sft.learning_rate = " in notices
    reading = json.loads((stopped / "sft" / "done.json").read_text())["sources"]
    assert reading and all(each["read"] > 0 for each in reading) and "sft: has read " in notices


def fill_by_rule(run: Path, *names: str) -> None:
    """Writes 0.24 into recipe.toml, and these names into derived.json, as a start of a later stage does."""
    recipe = load_recipe(run, [f"{name}=0.24" for name in names])
    write_text(run / "recipe.toml", dump_toml(recipe))
    values = json.loads((run / "derived.json").read_text())
    (run / "derived.json").write_text(json.dumps(values | dict.fromkeys(names, 0.24)))


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_a_value_that_a_rule_has_filled_is_no_changed_setting_and_open_where_its_stage_begins(stage, stopped):
    lines: list[str] = []
    fill_by_rule(stopped, "sft.learning_rate", "rl.learning_rate")
    source = checkpoint.find_latest_checkpoint(stopped / "pretrain" / "checkpoints")
    recipe = load_recipe(stopped, ["sft.train_on=all"])
    kept = resume_check.reconcile_settings(recipe, stage, stopped, source, lines.append)
    assert "learning_rate" not in lines[0] and "sft.train_on" in lines[0]
    assert kept.sft.learning_rate is None and kept.rl.learning_rate is None
    kept = resume_check.reconcile_settings(
        load_recipe(stopped, ["sft.learning_rate=0.3"]), stage, stopped, source, print
    )
    assert kept.sft.learning_rate == 0.3, "a user's value is kept"


def test_a_stage_that_is_done_keeps_the_values_of_its_rules_without_a_word(done):
    lines: list[str] = []
    fill_by_rule(done, "sft.learning_rate")
    (done / "sft/checkpoints").mkdir(parents=True)
    (done / "sft/done.json").write_text("{}")
    source = checkpoint.find_latest_checkpoint(done / "pretrain" / "checkpoints")
    kept = resume_check.reconcile_settings(load_recipe(done), "midtrain", done, source, lines.append)
    assert kept.sft.learning_rate == 0.24 and not lines
    resume_check.require_unchanged(load_recipe(done), "pretrain", done, source, lines.append)
    assert not lines


def test_a_plan_of_a_run_derives_what_a_stage_that_has_not_begun_will(done, capsys):
    fill_by_rule(done, "sft.learning_rate")
    assert main(["plan", str(done), "--set", "sft.steps=40", "--json"]) == 0
    derived = {entry["name"]: entry["value"] for entry in json.loads(capsys.readouterr().out)["derived"]}
    assert derived["sft.learning_rate"] != 0.24 and "optimizer.matrix_lr" not in derived


@pytest.mark.parametrize("way", ["override", "table", "file"])
def test_a_value_that_is_stated_is_kept_where_a_rule_had_given_the_same(way, done, tmp_path):
    rate = load_recipe(done).optimizer.matrix_lr
    source, given = done, [f"optimizer.matrix_lr={rate}" if way != "table" else f"optimizer={{matrix_lr={rate}}}"]
    if way == "file":
        own = tmp_path / "own.toml"
        own.write_text((done / "recipe.toml").read_text())
        source, given = own, ["optimizer.head_lr=none", f"run.out={done}"]
    recipe = load_recipe(source, [*given, "pretrain.steps=40"])
    opened = resume_check.reconcile_settings(recipe, "pretrain", done, None, print)
    assert opened.optimizer.matrix_lr == rate and opened.optimizer.head_lr is None
    write_derived_values(done, opened, opened)
    assert "optimizer.matrix_lr" not in json.loads((done / "derived.json").read_text())
    later = resume_check.reconcile_settings(load_recipe(done), "pretrain", done, None, print)
    assert later.optimizer.matrix_lr == rate, "so it is in a later start"


def test_a_first_stage_that_is_restarted_follows_the_rules_again(done):
    recorded, deeper = load_recipe(done), load_recipe(done, ["pretrain.steps=40"])
    assert recorded.pretrain.warmup_steps == 0 and recorded.optimizer.matrix_lr
    opened = resume_check.reconcile_settings(deeper, "pretrain", done, None, print)
    assert opened.optimizer.matrix_lr is None and opened.pretrain.steps == 40
    assert opened.pretrain.warmup_steps == 0, "which the recipe gives"


def test_weights_with_another_model_start_no_stage(done):
    before = digests(done)
    with pytest.raises(UserError, match=r"sft cannot be resumed .* with model\.depth=2: it is 1 there"):
        run_stage(load_recipe(done, ["model.depth=2"]), "sft", quiet=True)
    assert digests(done) == before


def test_a_restarted_stage_trains_a_tokenizer_with_the_settings_of_its_recipe(done):
    run_stage(load_recipe(done, ["tokenizer.vocab_size=340"]), "pretrain", "never", quiet=True)
    facts = json.loads((done / "tokenizer" / "training.json").read_text())
    assert facts["vocab_size"] == 340 == tomllib.loads((done / "recipe.toml").read_text())["tokenizer"]["vocab_size"]
    notices = "\n".join(line["text"] for line in read_jsonl(done / "pretrain" / "notices.jsonl"))
    assert "its settings changed, so it is trained again" in notices


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts | {"fingerprint": "0"}, "is not the tokenizer that training.json next to it describes"),
        (lambda facts: {"vocab_size": 999}, "was made with tokenizer.vocab_size=999, the recipe says"),
        (lambda facts: {"max_digits": 9}, "was made with tokenizer.max_digits=9, the recipe says"),
        (lambda facts: None, None),
    ],
)
def test_a_tokenizer_of_another_origin_is_rejected_where_nothing_was_trained_with_it(done, change, message):
    file = done / "tokenizer" / "training.json"
    facts = change(json.loads(file.read_text()))
    file.write_text(json.dumps(facts)) if facts else file.unlink()
    if message is None:  # a tokenizer that was given: of the right size
        assert run_stage(load_recipe(done), "pretrain", "never", quiet=True)
        return
    before = digests(done)
    with pytest.raises(UserError, match=f"{message}.*delete .*tokenizer to train it again"):
        run_stage(load_recipe(done), "pretrain", "never", quiet=True)
    assert digests(done) == before


@pytest.mark.parametrize(
    "overrides",
    [
        ['run.loggers=["nothere"]'],
        ["rl.rewards={nothere=1.0}"],
        ["rl.kl_target=0.1", "rl.kl_weight=0.0"],
        ["sft.mixture={counting=1.0}", 'run.loggers=["nothere"]'],
    ],
)
def test_a_start_that_fails_leaves_the_recipe_that_has_run(done, overrides):
    stage = "rl" if "rl." in overrides[0] else "sft"
    names = ("recipe.toml", "environment.json", "plan.json", "seal.json")
    before = [(done / name).read_bytes() for name in names]
    resume = "never" if stage == "sft" else "auto"
    base = [
        'stages=["pretrain", "rl"]',
        "rl.steps=1",
        "rl.tasks={counting=1.0}",
        "rl.prompts_per_round=2",
        "rl.group_size=2",
        "rl.max_new_tokens=2",
    ]
    with pytest.raises(UserError):
        run_stage(load_recipe(done, [*(base if stage == "rl" else []), *overrides]), stage, resume, quiet=True)
    assert [(done / name).read_bytes() for name in names] == before and not (done / stage / "plan.json").exists()


def test_steps_that_a_budget_has_set_since_are_no_changed_settings(done):
    lines: list[str] = []
    source = checkpoint.find_latest_checkpoint(done / "pretrain" / "checkpoints")
    path = done / "recipe.toml"
    path.write_text(path.read_text().replace("[sft]\nsteps = 1\n", "[sft]\nsteps = 7\n"))
    assert load_recipe(done).sft.steps == 7

    def list_shown(*overrides):
        lines.clear()
        kept = resume_check.reconcile_settings(load_recipe(done, overrides), "sft", done, source, lines.append)
        return kept.sft.steps, "\n".join(lines)

    assert list_shown()[0] == 7 and "sft.steps" in list_shown()[1], "edited by hand"
    (done / "forecast.json").write_text("{}")
    assert list_shown() == (7, "")
    assert list_shown("sft.steps=9")[0] == 9 and "sft.steps" in list_shown("sft.steps=9")[1], "a user has set it"


def test_the_steps_of_a_run_with_a_budget_are_no_changed_settings(done):
    """Earlier stages made others than its recipe states, as the time allowed."""
    (done / "forecast.json").write_text("{}")
    source = checkpoint.find_latest_checkpoint(done / "pretrain" / "checkpoints")
    lines: list[str] = []
    recipe = load_recipe(done, ["pretrain.steps=99", "pretrain.warmup_steps=3", "pretrain.learning_rate=0.5"])
    resume_check.reconcile_settings(recipe, "sft", done, source, lines.append, steps_are_chosen=True)
    assert "pretrain.learning_rate" in lines[0]
    assert "pretrain.steps" not in lines[0] and "pretrain.warmup_steps" not in lines[0]


def test_a_done_stage_says_which_settings_it_keeps(done):
    lines: list[str] = []
    overrides = ["optimizer.matrix_lr=9.0", "pretrain.learning_rate=0.5", "sft.learning_rate=0.5", "run.threads=1"]
    newest = checkpoint.find_latest_checkpoint(done / "pretrain" / "checkpoints")
    resume_check.require_unchanged(load_recipe(done, overrides), "pretrain", done, newest, lines.append)
    assert "optimizer.matrix_lr" in lines[0] and "pretrain.learning_rate" in lines[0] and "--resume never" in lines[0]
    assert "sft.learning_rate" not in lines[0] and "threads" not in lines[0]


@pytest.mark.parametrize("stage", ["midtrain", "sft", "rl"])
def test_a_later_stage_says_which_settings_of_a_done_one_are_ignored(stage, done):
    lines: list[str] = []
    source = checkpoint.find_latest_checkpoint(done / "pretrain" / "checkpoints")
    recipe = load_recipe(done, ["pretrain.learning_rate=0.5", "rl.tasks={counting=1.0}", "rl.steps=1"])
    kept = resume_check.reconcile_settings(recipe, stage, done, source, lines.append)
    (line,) = (line for line in lines[0].splitlines() if "pretrain.learning_rate" in line)
    assert "ignored" in line and "pretrain is done" in line
    assert kept.pretrain.learning_rate == load_recipe(done).pretrain.learning_rate


def test_a_recipe_that_cannot_be_compared_is_a_notice(done):
    lines: list[str] = []
    source = done / "pretrain" / "checkpoints" / "step-00000002"
    manifest = json.loads((source / "manifest.json").read_text())
    state = json.loads((source / "state.json").read_text())
    (source / "state.json").write_text(json.dumps({**state, "recipe": "model = ["}))
    manifest["files"]["state.json"]["bytes"] = (source / "state.json").stat().st_size
    (source / "manifest.json").write_text(json.dumps(manifest))
    recipe = load_recipe(done)
    assert resume_check.reconcile_settings(recipe, "sft", done, source, lines.append) == recipe
    assert len(lines) == 1 and "cannot be compared" in lines[0]


# ---- weights and tokenizer -----------------------------------------------------------------------


def save(directory: Path, value: float, state: dict) -> Path:
    return checkpoint.save_checkpoint(directory / "checkpoints", 1, {"model": {"w": torch.full((2,), value)}}, state)


def test_a_stage_that_was_made_from_other_weights_says_so(tmp_path):
    first, second = (save(tmp_path / name, value, {"step": 1}) for name, value in (("a", 1.0), ("b", 2.0)))
    saved = save(tmp_path / "sft", 3.0, {"stage": "sft", "step": 1, "parent": describe_parent(first)})
    resume_check.require_same_parent("sft", tmp_path / "sft", saved, first)
    resume_check.require_same_parent("sft", tmp_path / "sft", saved, None)  # its checkpoints were deleted to make room
    with pytest.raises(UserError, match=r"other weights than .*restart sft with `fledgling train sft"):
        resume_check.require_same_parent("sft", tmp_path / "sft", saved, second)


def test_a_run_trained_again_names_the_stages_that_are_left_from_before(done, capsys):
    recipe = load_recipe(done)
    assert run_stage(recipe, "sft", quiet=True)
    state = checkpoint.read_checkpoint_state(checkpoint.resolve_checkpoint(done / "sft"))
    assert (state["parent"]["stage"], state["parent"]["step"]) == ("pretrain", 2)
    assert run_stage(load_recipe(done, ["optimizer.embedding_lr=0.5"]), "pretrain", "never", quiet=True)
    assert main(["train", "sft", str(done)]) == 1
    assert "was made from other weights than" in capsys.readouterr().err


def test_a_lost_tokenizer_comes_back_from_the_checkpoint_and_another_one_is_rejected(done):
    lines: list[str] = []
    file, source = done / "tokenizer" / "tokenizer.json", checkpoint.resolve_checkpoint(done)
    fingerprint = Tokenizer.load(file).fingerprint()
    shutil.rmtree(file.parent)
    resume_check.require_tokenizer(done, source, lines.append)
    assert Tokenizer.load(file).fingerprint() == fingerprint and "was missing" in lines[0]
    Tokenizer.train(["some other text " * 50], vocab_size=330).save(file)
    with pytest.raises(UserError, match=r"is another tokenizer than that of .*delete"):
        resume_check.require_tokenizer(done, source, lines.append)


def test_rates_follow_from_the_batch_that_the_examples_of_pretraining_fill(tmp_path):
    """They followed from the depth's batch, and those of fine-tuning from their ratio to it."""
    settings = [*LONGER, "pretrain.batch_tokens=none", "pretrain.examples_per_step=3", "sft.steps=2"]
    recipe = load_recipe(write_recipe(tmp_path), settings)
    run_dir, config = Path(recipe.run.out), recipe.resolve_model()
    assert run_stage(recipe, "pretrain", quiet=True)
    rows = read_jsonl(run_dir / "pretrain" / "metrics.jsonl")[0]["tokens"] // config.context
    assert resume_check.read_pretrain_rows(run_dir, recipe, config) == rows
    assert rows * config.context != compute_horizon(config).batch_tokens
    stated = ["pretrain.examples_per_step=none", f"pretrain.batch_tokens={rows * config.context}"]
    expected = derive_recipe(load_recipe(write_recipe(tmp_path / "stated"), [*settings, *stated]))
    assert load_recipe(run_dir).optimizer == expected.optimizer
    notices = "\n".join(line["text"] for line in read_jsonl(run_dir / "pretrain" / "notices.jsonl"))
    assert f"optimizer.matrix_lr = {expected.optimizer.matrix_lr:g} (rule 4)" in notices
    (run_dir / "pretrain" / "done.json").unlink()
    shutil.rmtree(run_dir / "pretrain" / "checkpoints" / "step-00000002")
    assert run_stage(recipe, "pretrain", quiet=True)
    assert load_recipe(run_dir).optimizer == expected.optimizer, "a resumed run keeps them"
    assert run_stage(load_recipe(run_dir), "sft", quiet=True)
    size = find_run_size(load_recipe(run_dir).pretrain, config, rows)
    tokens = read_jsonl(run_dir / "sft" / "metrics.jsonl")[-1]["tokens"]
    rate = scaling_rules.sft_rate(tokens / size.tokens, tokens / 2 / size.batch_tokens)
    assert load_recipe(run_dir).sft.learning_rate == round_rate(rate)


def test_a_batch_that_followed_from_examples_is_kept_and_may_be_stated(done):
    """Two rows of 64 tokens hold the two conversations of a step, whatever the depth's batch would be."""
    settings = [*LONGER, "sft.batch_tokens=none", "sft.examples_per_step=2", "sft.steps=2"]
    recipe = load_recipe(done, settings)
    assert run_stage(recipe, "sft", quiet=True)
    newest = checkpoint.find_latest_checkpoint(done / "sft" / "checkpoints")
    rows = checkpoint.read_checkpoint_state(newest)["rows_per_step"]
    lines = read_jsonl(done / "sft" / "metrics.jsonl")
    assert 1 <= rows <= 4 and [line["tokens"] for line in lines] == [64 * rows, 2 * 64 * rows]
    shutil.rmtree(newest)
    (done / "sft" / "done.json").unlink()
    before = digests(done)
    stated = ["sft.examples_per_step=none", f"sft.batch_tokens={64 * rows}"]
    with pytest.raises(UserError, match=r"sft.batch_tokens=512: it is not set there"):
        run_stage(load_recipe(done, ["sft.examples_per_step=none", "sft.batch_tokens=512"]), "sft", quiet=True)
    assert digests(done) == before
    assert run_stage(load_recipe(done, [*stated, "sft.steps=3"]), "sft", quiet=True)
    assert [line["tokens"] for line in read_jsonl(done / "sft" / "metrics.jsonl")] == [n * 64 * rows for n in (1, 2, 3)]
    old = {name: value for name, value in checkpoint.read_checkpoint_state(
        checkpoint.find_latest_checkpoint(done / "pretrain" / "checkpoints")
    ).items() if name != "rows_per_step"}  # fmt: skip
    assert resume_check.read_rows_per_step(old, load_recipe(done).pretrain) == 2, "an older checkpoint: its recipe's"
