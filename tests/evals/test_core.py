"""CORE end to end on a made-up bundle: spans of tokens, the metric, resuming, logs, and transformers as a witness."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fledgling.cli import main
from fledgling.config import ModelConfig, UserError
from fledgling.evals import core as evals_core
from fledgling.evals.core import (
    CoreSettings,
    CoreTaskResult,
    ItemResult,
    compute_core,
    compute_task_result,
    is_correct,
    list_core_measurements,
    run_core,
    tokenize_prompts,
    zip_prompts,
)
from fledgling.evals.core_log import (
    CoreLog,
    compare_core_logs,
    mcnemar_p_value,
    paired_difference,
    read_core_log,
    replay_core_log,
)
from fledgling.evals.likelihood import Scorer
from fledgling.evals.measurement import wilson_interval
from fledgling.export import write_hf
from fledgling.files import resolve_data_root
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.record import checkpoint
from fledgling.tasks.core import CoreItem, CoreTask, find_core_bundle, read_core_items, read_core_tasks, select_items
from fledgling.text.tokenizer import Tokenizer
from tests.made_up_core import bundle

SETTINGS = CoreSettings()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Few merges: almost every token is a letter, alone or after a space."""
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)


def random_model(vocab_size: int, seed: int = 1, context: int = 256, family: str = "fledgling") -> Transformer:
    kv_heads = 4 if family == "gpt2" else 2
    sizes = {"vocab_size": vocab_size, "depth": 2, "width": 64, "heads": 4, "kv_heads": kv_heads, "context": context}
    model = Transformer(ModelConfig(family=family, **sizes))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


@pytest.fixture(scope="module")
def engine(tokenizer) -> Engine:
    return Engine(random_model(tokenizer.vocab_size), tokenizer)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict[str, CoreTask]:
    return {task.label: task for task in read_core_tasks(bundle(tmp_path_factory.mktemp("data")))}


def asked(
    tokenizer, task: CoreTask, convention: str, items: list[CoreItem] | None = None
) -> list[list[tuple[str, str]]]:
    """For every choice of every item: (what is given, what is asked for), as text."""
    made = [prompt for _, prompt in zip_prompts(task, items or read_core_items(task), convention)]
    found = tokenize_prompts(tokenizer, task.kind, made, convention)
    return [
        [tuple(map(tokenizer.decode, (r.tokens[1 : r.start], r.tokens[r.start :]))) for r in item] for item in found
    ]


# ---- which tokens are asked for ------------------------------------------------------------------


def test_multiple_choice_asks_for_what_follows_the_common_tokens(tokenizer, tasks):
    first = asked(tokenizer, tasks["choice_zeroshot"], "nanochat")[0]
    assert first == [
        ("Question: The capital of Italy?", " Rome city"),
        ("Question: The capital of Italy?", " Rom"),
        ("Question: The capital of Italy?", " Oslo is it"),
    ]


def test_what_all_choices_begin_with_is_not_asked_for(tokenizer, tasks):
    item = CoreItem(("It was",), ("Rome then", "Rome now"), 0)
    assert asked(tokenizer, tasks["choice_zeroshot"], "nanochat", [item])[0] == [
        ("It was Rome", " then"),
        ("It was Rome", " now"),
    ]
    assert asked(tokenizer, tasks["choice_zeroshot"], "foundry", [item])[0] == [
        ("It was", " Rome then"),
        ("It was", " Rome now"),
    ]


def test_letters_ask_for_one_token(tokenizer, tasks):
    first = asked(tokenizer, tasks["letters"], "nanochat")[0]
    assert [end for _, end in first] == [" A", " B"] and first[0][0].endswith("A. yes\nB. no\nAnswer: ")
    assert first[0][0].startswith("Pick w.\nA. yes\nB. no\nAnswer:  A\n\nPick s.")
    assert asked(tokenizer, tasks["letters"], "foundry")[0][1][0].endswith("Answer:")


def test_schema_asks_for_what_all_choices_end_with(tokenizer, tasks):
    for convention in ("nanochat", "foundry"):
        assert asked(tokenizer, tasks["schema"], convention)[0] == [
            ("The cup fell off the table because the cup", " was round."),
            ("The cup fell off the table because the table", " was round."),
        ]
    shown = asked(tokenizer, tasks["schema_shots"], "nanochat")[0]
    assert shown[0] == (
        "The dog chased the cat and the cat got away.\n\nThe cup fell off the table because the cup",
        " was round.",
    )
    same_end = CoreItem(("It was the cap", "It was the cup"), ("red.",), 0)  # the contexts' last letter is alike
    assert asked(tokenizer, tasks["schema"], "nanochat", [same_end])[0][0] == ("It was the ca", "p red.")


def test_language_modelling_asks_for_the_continuation(tokenizer, tasks):
    for convention in ("nanochat", "foundry"):
        assert asked(tokenizer, tasks["language_zeroshot"], convention)[0] == [
            ("Italy is where they eat in\nAnswer:", " Rome")
        ]
    assert asked(tokenizer, tasks["language"], "nanochat")[3][0][1] == " Athens"
    year = CoreItem(("In the year",), ("1492",), 0)  # digits are tokens of their own: the space is asked for too
    assert asked(tokenizer, tasks["language_zeroshot"], "nanochat", [year])[0] == [("In the year", " 1492")]


def test_a_token_over_the_end_of_the_context_counts_to_the_continuation(tasks):
    """A vocabulary in which "::" is one token: the published evaluator gives up here."""
    doubled = Tokenizer.train(["a:: b:: c:: d:: " * 40], vocab_size=318)
    item = CoreItem(("a:",), (": b",), 0)
    joined = CoreTask("x", Path("x"), "language_modeling", 0, "", 0.0, False)
    assert len(doubled.encode("a::")) == 2
    assert asked(doubled, joined, "nanochat", [item])[0] == [("a", ":: b")]


# ---- the metric ----------------------------------------------------------------------------------


def said(logprobs=(), tokens=(), gold=0, greedy=False, cropped=0, category="") -> ItemResult:
    return ItemResult(0, category, gold, logprobs, tokens, greedy, cropped)


def test_the_likeliest_choice_a_token_wins_and_the_first_of_equals():
    assert is_correct("multiple_choice", said((-4.0, -3.0), (4, 2), gold=0)), "-1 a token beats -1.5"
    assert not is_correct("multiple_choice", said((-4.0, -3.0), (4, 2), gold=1))
    assert is_correct("schema", said((-2.0, -4.0), (1, 2), gold=0)) and not is_correct(
        "schema", said((-2, -4), (1, 2), 1)
    )
    assert is_correct("language_modeling", said(greedy=True)) and not is_correct(
        "language_modeling", said(greedy=False)
    )


def test_an_empty_choice_counts_as_the_published_evaluator_lets_it():
    """A choice that all others begin with leaves nothing to ask for: its mean is NaN, and NaN is never the lesser."""
    losses = [float("nan"), 1.0]
    assert losses.index(min(losses)) == 0 and is_correct("multiple_choice", said((0.0, -1.0), (0, 1), gold=0))
    assert is_correct("multiple_choice", said((-1.0, 0.0), (1, 0), gold=0))


def test_accuracy_is_centred_on_guessing(tasks):
    task = tasks["choice"]
    result = compute_task_result(
        task, [said((-1.0, -2.0, -3.0), (1, 1, 1), gold=0)] * 3 + [said((-1, -2, -3), (1, 1, 1), 2)], "nanochat"
    )
    assert (result.n, result.right, result.accuracy) == (4, 3, 0.75)
    assert (result.low, result.high) == wilson_interval(3, 4)
    assert result.centered[0] == pytest.approx((0.75 - 0.33) / 0.67)


def made_result(label: str, accuracy: float, baseline: float, n: int) -> CoreTaskResult:
    low, high = wilson_interval(accuracy * n, n)
    return CoreTaskResult(label, "schema", 0, n, round(accuracy * n), accuracy, low, high, baseline, 0, 0, 0, 0.0)


def test_core_is_the_mean_of_centred_accuracies():
    results = [made_result("a", 0.75, 0.5, 400), made_result("b", 0.1, 0.0, 1000)]
    found = compute_core(results)
    assert found.value == pytest.approx((0.5 + 0.1) / 2) and found.n == 1400
    halves = [(r.centered[2] - r.centered[1]) / 2 for r in results]
    assert found.high - found.value == pytest.approx(math.hypot(*halves) / 2)
    assert [m.name for m in list_core_measurements(results, True)] == ["core", "core_a", "core_b"]
    assert [m.name for m in list_core_measurements(results, False)] == ["core_a", "core_b"]


def test_the_published_table_of_gpt2_is_centred_the_same_way():
    """The mean of centred accuracies of the published files is the CORE they state."""
    folder = find_core_bundle(resolve_data_root()) if os.environ.get("FLEDGLING_DATA") else None
    if folder is None:
        pytest.skip("FLEDGLING_DATA is not set")
    baselines = {task.label: task.baseline for task in read_core_tasks(resolve_data_root())}
    tables = sorted((folder / "reference_gpt2").glob("*.csv"))
    assert tables
    for table in tables:
        lines = [[cell.strip() for cell in line.split(",")] for line in table.read_text().splitlines()[1:]]
        stated = {name: (accuracy, centred) for name, accuracy, centred in lines}
        scores = [made_result(n, float(a), baselines[n], 1000) for n, (a, _) in stated.items() if n in baselines]
        assert len(scores) == 22 and compute_core(scores).value == pytest.approx(float(stated["CORE"][1]), abs=1e-5)


def test_foundry_averages_over_categories_and_draws_examples_within(tasks, tokenizer):
    task = tasks["language"]
    answers = [said(greedy=True, category="a")] * 3 + [said(greedy=False, category="b")]
    assert (
        compute_task_result(task, answers, "nanochat").accuracy == 0.75
        and compute_task_result(task, answers, "foundry").accuracy == 0.5
    )
    for item, prompt in zip_prompts(task, read_core_items(task), "foundry"):
        assert prompt.examples == "", f"no other item is of category {item.category}"


# ---- a run: cropped, resumed, logged, replayed ---------------------------------------------------


def test_every_task_runs_and_a_second_run_takes_what_is_there(engine, tasks, tmp_path, monkeypatch):
    listed, file = list(tasks.values()), tmp_path / "done.jsonl"
    first = run_core(Scorer(engine), listed[:3], SETTINGS, "m", file)
    assert [r.label for r in first] == ["choice", "choice_zeroshot", "letters"]
    scored = []
    original = evals_core.run_core_task
    monkeypatch.setattr(
        evals_core,
        "run_core_task",
        lambda scorer, task, *rest: scored.append(task.label) or original(scorer, task, *rest),
    )
    whole = run_core(Scorer(engine), listed, SETTINGS, "m", file)
    assert scored == ["schema", "schema_shots", "language", "language_zeroshot"] and whole[:3] == first
    scored.clear()
    assert run_core(Scorer(engine), listed, SETTINGS, "m", file) == whole and scored == []
    run_core(Scorer(engine), listed[:1], CoreSettings(2), "m", file)
    run_core(Scorer(engine), listed[:1], SETTINGS, "another model", file)
    listed[0].file.write_text(listed[0].file.read_text().replace('Rom"', 'Roma"'))
    run_core(Scorer(engine), listed[:1], SETTINGS, "m", file)
    assert scored == ["choice"] * 3, "other settings, another model and another file are run again"


def test_a_context_shorter_than_a_prompt_crops_and_counts(tokenizer, tasks):
    short = Engine(random_model(tokenizer.vocab_size, context=40), tokenizer)
    result = run_core(Scorer(short), [tasks["language"]], SETTINGS)[0]
    assert result.cropped == result.n == 4
    assert (
        run_core(Scorer(Engine(random_model(tokenizer.vocab_size), tokenizer)), [tasks["language"]], SETTINGS)[
            0
        ].cropped
        == 0
    )


def logged(engine, tasks, path: Path, settings: CoreSettings = SETTINGS, **more) -> list[CoreTaskResult]:
    log = CoreLog(path)
    try:
        return run_core(Scorer(engine), list(tasks.values()), settings, log=log, **more)
    finally:
        log.close()


def figures(results: list[CoreTaskResult]) -> list[tuple]:
    return [(r.label, r.n, r.right, r.accuracy, r.low, r.high, r.baseline, r.cropped) for r in results]


@pytest.mark.parametrize("convention", ["nanochat", "foundry"])
def test_a_log_is_replayed_without_a_model(engine, tasks, tmp_path, convention):
    path = tmp_path / "log.jsonl"
    results = logged(engine, tasks, path, CoreSettings(None, convention))
    assert figures(replay_core_log(path)) == figures(results)
    item = next(line for line in map(json.loads, path.read_text().splitlines()) if line.get("task") == "language")
    assert item["shots"] == "" or "where they eat" in item["shots"]
    assert isinstance(item["predicted"], str) and len(item["logprobs"]) == 1


def test_a_task_whose_log_is_torn_is_run_again(engine, tasks, tmp_path):
    path, done = tmp_path / "log.jsonl", tmp_path / "done.jsonl"
    first = logged(engine, tasks, path, finished=done)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:20])
    assert len(CoreLog(path).keys) == len(tasks) - 1
    again = logged(engine, tasks, path, finished=done)
    assert figures(again) == figures(first) == figures(replay_core_log(path))
    assert len(path.read_text().splitlines()) == len(lines) + 3, "one task more: its beginning and four items; two lost"


def test_a_file_that_is_no_log_is_told(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"task": "a"}\n')
    with pytest.raises(UserError, match=r"x.jsonl:1: not a line"):
        read_core_log(path)
    path.write_text("")
    with pytest.raises(UserError, match="no evaluation is logged"):
        read_core_log(path)


# ---- two models ----------------------------------------------------------------------------------


def test_mcnemar_is_the_binomial_test():
    assert mcnemar_p_value(0, 0) == 1.0 and mcnemar_p_value(5, 5) == 1.0
    assert mcnemar_p_value(1, 9) == pytest.approx(2 * 11 / 1024)  # 2 * (1 + 10) / 2^10
    assert mcnemar_p_value(9, 1) == mcnemar_p_value(1, 9)


def test_a_paired_interval_is_narrower_than_two_wide_ones():
    a = np.array([1.0] * 60 + [0.0] * 40)
    b = a.copy()
    b[60:66] = 1.0
    found = paired_difference("x", a, b)
    assert (found.only_a, found.only_b, round(found.value, 3)) == (0, 6, 0.06) and found.p == pytest.approx(2 / 64)
    assert 0 < found.low < 0.06 < found.high < 0.12


def test_two_logs_are_compared_item_by_item(engine, tokenizer, tasks, tmp_path):
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first = logged(engine, tasks, a)
    second = logged(Engine(random_model(tokenizer.vocab_size, seed=5), tokenizer), tasks, b)
    found = {d.name: d for d in compare_core_logs(a, b)}
    assert found["core"].value == pytest.approx(compute_core(second).value - compute_core(first).value)
    assert found["core"].low <= found["core"].value <= found["core"].high
    for one, other in zip(first, second, strict=True):
        assert found[one.label].value == pytest.approx(other.accuracy - one.accuracy)
    same = compare_core_logs(a, a)
    assert all((d.value, d.low, d.high, d.p) == (0, 0, 0, 1) for d in same)
    cut = tmp_path / "cut.jsonl"
    logged(engine, tasks, cut, CoreSettings(2))
    with pytest.raises(UserError, match="did not ask the same items"):
        compare_core_logs(a, cut)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def saved(tokenizer, tmp_path) -> Path:
    """A checkpoint in a run's pretraining."""
    file = tokenizer.save(tmp_path / "tokenizer.json")
    model = random_model(tokenizer.vocab_size)
    state = {"stage": "pretrain", "step": 3, "model": model.config.to_dict()}
    stage = tmp_path / "run" / "pretrain"
    path = checkpoint.save_checkpoint(
        stage / "checkpoints", 3, {"model": model.state_dict()}, state, {"tokenizer.json": file}
    )
    (stage / "metrics.jsonl").write_text("{}\n")
    return path


def test_the_command_scores_resumes_records_and_replays(saved, tmp_path, capsys):
    root = bundle(tmp_path)
    command = ["eval", "core", str(saved), "--data-dir", str(root), "--device", "cpu", "--dtype", "float32"]
    log = tmp_path / "log.jsonl"
    assert main([*command, "--log", str(log), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["tasks"]) == 7 and shown["core"]["n"] == 28
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == shown, "taken from the file beside the checkpoint"
    assert (saved.parent.parent / "exams" / saved.name / "core.jsonl").is_file()
    evals = [json.loads(line) for line in (saved.parent.parent / "evals.jsonl").read_text().splitlines()]
    assert {line["name"] for line in evals} >= {"core", "core_schema"} and {line["step"] for line in evals} == {3}
    assert main(["eval", "core", "--replay", str(log), "--json"]) == 0
    assert [t["accuracy"] for t in json.loads(capsys.readouterr().out)["tasks"]] == [
        t["accuracy"] for t in shown["tasks"]
    ]
    assert main(["eval", "compare", str(log), str(log), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "core"
    assert main([*command, "--tasks", "schema", "letters", "--max-per-task", "2"]) == 0
    out = capsys.readouterr().out
    assert "schema" in out and "mean of 2" in out and "CORE" not in out


def test_an_untrained_twin_is_scored_and_is_not_the_run_s(saved, tmp_path, capsys):
    """Random weights that tell choices apart: a fresh model, whose head is zero, finds all equally likely."""
    log = tmp_path / "log.jsonl"
    command = ["eval", "core", str(saved), "--data-dir", str(bundle(tmp_path)), "--device", "cpu", "--json"]
    assert main([*command, "--untrained", "--log", str(log)]) == 0
    untrained = json.loads(capsys.readouterr().out)
    assert untrained["untrained"] and untrained["core"]["n"] == 28
    items = [line for line in map(json.loads, log.read_text().splitlines()) if len(line.get("logprobs", ())) > 1]
    assert items and all(len(set(item["logprobs"])) > 1 for item in items)
    assert not (saved.parent.parent / "evals.jsonl").exists()
    assert main(command) == 0, "the trained one is not taken from what its twin left"
    assert json.loads(capsys.readouterr().out)["tasks"] != untrained["tasks"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--max-per-task", "0"], "--max-per-task is 0"),
        (["--tasks", "schemer"], 'no CORE task "schemer"'),
        (["--data-dir", "/nowhere"], "fledgling data fetch core"),
    ],
)
def test_mistakes_get_one_line(saved, tmp_path, capsys, options, word):
    root = [] if "--data-dir" in options else ["--data-dir", str(bundle(tmp_path))]
    assert main(["eval", "core", str(saved), "--device", "cpu", *root, *options]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert word in error[-1] and error[-1].startswith("error: ")


# ---- an independent witness ----------------------------------------------------------------------


def witness(engine: Engine, folder: Path):
    """The model as transformers loads it from a Hugging Face directory."""
    transformers = pytest.importorskip("transformers")
    path = write_hf.write_hf(folder / "hf", engine.model.config, engine.model.state_dict(), engine.tokenizer, "")
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def straight(theirs, tokenizer, text: str, start: int) -> float:
    """log p of a text's tokens from `start` on, by transformers alone: one text, one forward, no cache."""
    tokens = torch.tensor([[tokenizer.bos, *tokenizer.encode(text)]])
    with torch.no_grad():
        logprobs = theirs(tokens).logits.double().log_softmax(-1)[0, start - 1 : -1]
    return float(logprobs.gather(1, tokens[0, start:, None]).sum())


def agree(engine, theirs, task: CoreTask, items: list[CoreItem]) -> int:
    made = [prompt for _, prompt in zip_prompts(task, items, "nanochat")]
    rowed = tokenize_prompts(engine.tokenizer, task.kind, made, "nanochat")
    for prompt, row, scores in zip(made, rowed, Scorer(engine).score(rowed), strict=True):
        for text, one, score in zip(prompt.texts, row, scores, strict=True):
            assert score.num_cropped == 0
            assert score.logprob == pytest.approx(straight(theirs, engine.tokenizer, text, one.start), abs=1e-4)
    return sum(len(row) for row in rowed)


@pytest.mark.parametrize("family", ["fledgling", "gpt2", "llama"])
def test_log_likelihoods_equal_those_of_transformers(tokenizer, tasks, tmp_path, family):
    engine = Engine(random_model(tokenizer.vocab_size, family=family), tokenizer)
    theirs = witness(engine, tmp_path)
    assert (
        sum(agree(engine, theirs, task, read_core_items(task)) for task in tasks.values())
        == 12 + 12 + 12 + 6 + 6 + 4 + 4
    )


@pytest.mark.parametrize("label", ["arc_easy", "arc_challenge", "hellaswag_zeroshot", "piqa"])
def test_log_likelihoods_of_real_items_equal_those_of_transformers(tokenizer, tmp_path, label):
    if not os.environ.get("FLEDGLING_DATA") or find_core_bundle(resolve_data_root()) is None:
        pytest.skip("FLEDGLING_DATA has no CORE bundle")
    task = read_core_tasks(resolve_data_root(), [label])[0]
    engine = Engine(random_model(tokenizer.vocab_size, context=8192), tokenizer)
    agree(engine, witness(engine, tmp_path), task, select_items(read_core_items(task), 6, "nanochat"))


def test_a_hugging_face_directory_scores_as_the_checkpoint_does(saved, tokenizer, tmp_path, capsys):
    model = random_model(tokenizer.vocab_size)
    directory = write_hf.write_hf(tmp_path / "hf", model.config, model.state_dict(), tokenizer, "")
    options = ["--data-dir", str(bundle(tmp_path)), "--device", "cpu", "--dtype", "float32", "--json"]
    shown = []
    for path in (saved, directory):
        assert main(["eval", "core", str(path), *options]) == 0
        shown.append([(t["label"], t["right"]) for t in json.loads(capsys.readouterr().out)["tasks"]])
    assert shown[0] == shown[1] and directory.with_name("hf.core.jsonl").is_file()
