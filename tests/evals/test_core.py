"""CORE on a made-up bundle: which tokens are scored, finished tasks, and transformers as an independent reference."""

import os
from pathlib import Path

import pytest
import torch

from fledgling.evals import core
from fledgling.evals.core import run_core, tokenize_prompts, zip_prompts
from fledgling.evals.core_results import CoreSettings
from fledgling.evals.likelihood import Scorer
from fledgling.export import write_hf
from fledgling.files import resolve_data_root
from fledgling.infer.engine import Engine
from fledgling.tasks.core import CoreItem, CoreTask, find_core_bundle, read_core_items, read_core_tasks, select_items
from fledgling.text.tokenizer import Tokenizer
from tests.evals.random_model import make_random_model


def decode_rows(
    tokenizer, task: CoreTask, convention: str, items: list[CoreItem] | None = None
) -> list[list[tuple[str, str]]]:
    """Returns (context, scored continuation) as text, for every choice of every item."""
    prompts = [prompt for _, prompt in zip_prompts(task, items or read_core_items(task), convention)]
    rows = tokenize_prompts(tokenizer, task.kind, prompts, convention)
    return [[tuple(map(tokenizer.decode, (r.tokens[1 : r.start], r.tokens[r.start :]))) for r in item] for item in rows]


def test_multiple_choice_scores_the_tokens_after_the_common_ones(core_tokenizer, core_tasks):
    first = decode_rows(core_tokenizer, core_tasks["choice_zeroshot"], "nanochat")[0]
    assert first == [
        ("Question: The capital of Italy?", " Rome city"),
        ("Question: The capital of Italy?", " Rom"),
        ("Question: The capital of Italy?", " Oslo is it"),
    ]


def test_a_common_beginning_of_the_choices_is_not_scored(core_tokenizer, core_tasks):
    item = CoreItem(("It was",), ("Rome then", "Rome now"), 0)
    assert decode_rows(core_tokenizer, core_tasks["choice_zeroshot"], "nanochat", [item])[0] == [
        ("It was Rome", " then"),
        ("It was Rome", " now"),
    ]
    assert decode_rows(core_tokenizer, core_tasks["choice_zeroshot"], "foundry", [item])[0] == [
        ("It was", " Rome then"),
        ("It was", " Rome now"),
    ]


def test_a_choice_that_another_one_begins_with_is_scored_too(core_tokenizer, core_tasks):
    """Its mean over no token was NaN, which made the first choice the best one, whatever the model."""
    for order in (("Rome", "Rome now"), ("Rome now", "Rome")):
        item = CoreItem(("It was",), order, 0)
        scored = decode_rows(core_tokenizer, core_tasks["choice_zeroshot"], "nanochat", [item])[0]
        starts = [len(context) for context, _ in scored]
        assert starts[0] == starts[1] and all(scored_text for _, scored_text in scored), "scored from the same place"
        assert [context + end for context, end in scored] == [f"It was {choice}" for choice in order]
        rows = tokenize_prompts(
            core_tokenizer,
            "multiple_choice",
            [prompt for _, prompt in zip_prompts(core_tasks["choice_zeroshot"], [item], "nanochat")],
            "nanochat",
        )
        assert all(len(row.tokens) > row.start for row in rows[0])


def test_of_a_schema_that_ends_with_different_tokens_the_last_one_is_scored(core_tasks):
    """One context ends with a letter that the continuation joins, the other does not."""
    joining = Tokenizer.train(["ax bx ax. cx. x.. ax.. " * 40], vocab_size=320)
    task = CoreTask("x", Path("x"), "schema", 0, "", 0.0, False)
    for contexts in (("a:", "b."), ("b.", "a:")):
        for _, scored in decode_rows(joining, task, "nanochat", [CoreItem(contexts, (".",), 0)])[0]:
            assert scored.endswith(".")


def test_of_letters_one_token_is_scored(core_tokenizer, core_tasks):
    first = decode_rows(core_tokenizer, core_tasks["letters"], "nanochat")[0]
    assert [end for _, end in first] == [" A", " B"] and first[0][0].endswith("A. yes\nB. no\nAnswer: ")
    assert first[0][0].startswith("Pick w.\nA. yes\nB. no\nAnswer:  A\n\nPick s.")
    assert decode_rows(core_tokenizer, core_tasks["letters"], "foundry")[0][1][0].endswith("Answer:")


def test_schema_scores_the_common_end_of_the_choices(core_tokenizer, core_tasks):
    for convention in ("nanochat", "foundry"):
        assert decode_rows(core_tokenizer, core_tasks["schema"], convention)[0] == [
            ("The cup fell off the table because the cup", " was round."),
            ("The cup fell off the table because the table", " was round."),
        ]
    shown = decode_rows(core_tokenizer, core_tasks["schema_shots"], "nanochat")[0]
    assert shown[0] == (
        "The dog chased the cat and the cat got away.\n\nThe cup fell off the table because the cup",
        " was round.",
    )
    same_end = CoreItem(("It was the cap", "It was the cup"), ("red.",), 0)  # the contexts' last letter is the same
    assert decode_rows(core_tokenizer, core_tasks["schema"], "nanochat", [same_end])[0][0] == (
        "It was the ca",
        "p red.",
    )


def test_language_modeling_scores_the_continuation(core_tokenizer, core_tasks):
    for convention in ("nanochat", "foundry"):
        assert decode_rows(core_tokenizer, core_tasks["language_zeroshot"], convention)[0] == [
            ("Italy is where they eat in\nAnswer:", " Rome")
        ]
    assert decode_rows(core_tokenizer, core_tasks["language"], "nanochat")[3][0][1] == " Athens"
    year = CoreItem(("In the year",), ("1492",), 0)  # digits are tokens of their own: the space is scored too
    assert decode_rows(core_tokenizer, core_tasks["language_zeroshot"], "nanochat", [year])[0] == [
        ("In the year", " 1492")
    ]


def test_a_token_over_the_end_of_the_context_belongs_to_the_continuation(core_tasks):
    """A vocabulary in which "::" is one token: the published evaluator stops with an error here."""
    doubled = Tokenizer.train(["a:: b:: c:: d:: " * 40], vocab_size=318)
    item = CoreItem(("a:",), (": b",), 0)
    joined = CoreTask("x", Path("x"), "language_modeling", 0, "", 0.0, False)
    assert len(doubled.encode("a::")) == 2
    assert decode_rows(doubled, joined, "nanochat", [item])[0] == [("a", ":: b")]


def test_every_task_runs_and_a_second_run_reads_finished_tasks(core_engine, core_tasks, tmp_path, monkeypatch):
    task_list, file = list(core_tasks.values()), tmp_path / "done.jsonl"
    first = run_core(Scorer(core_engine), task_list[:3], CoreSettings(), "m", file)
    assert [r.label for r in first] == ["choice", "choice_zeroshot", "letters"]
    scored = []
    original = core.run_core_task
    monkeypatch.setattr(
        core,
        "run_core_task",
        lambda scorer, task, *rest: scored.append(task.label) or original(scorer, task, *rest),
    )
    all_results = run_core(Scorer(core_engine), task_list, CoreSettings(), "m", file)
    assert scored == ["schema", "schema_shots", "language", "language_zeroshot"] and all_results[:3] == first
    scored.clear()
    assert run_core(Scorer(core_engine), task_list, CoreSettings(), "m", file) == all_results and scored == []
    run_core(Scorer(core_engine), task_list[:1], CoreSettings(2), "m", file)
    run_core(Scorer(core_engine), task_list[:1], CoreSettings(), "another model", file)
    task_list[0].file.write_text(task_list[0].file.read_text().replace('Rom"', 'Roma"'))
    run_core(Scorer(core_engine), task_list[:1], CoreSettings(), "m", file)
    assert scored == ["choice"] * 3, "other settings, another model and another file are run again"


def test_a_context_shorter_than_a_prompt_crops_and_counts(core_tokenizer, core_tasks):
    short = Engine(make_random_model(core_tokenizer.vocab_size, context=40), core_tokenizer)
    result = run_core(Scorer(short), [core_tasks["language"]], CoreSettings())[0]
    assert result.cropped == result.n == 4
    long = Engine(make_random_model(core_tokenizer.vocab_size), core_tokenizer)
    assert run_core(Scorer(long), [core_tasks["language"]], CoreSettings())[0].cropped == 0


def load_with_transformers(engine: Engine, folder: Path):
    """Returns the model as transformers loads it from a Hugging Face directory."""
    transformers = pytest.importorskip("transformers")
    path = write_hf.write_hf(folder / "hf", engine.model.config, engine.model.state_dict(), engine.tokenizer, "")
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def compute_reference_logprob(reference, tokenizer, text: str, start: int) -> float:
    """Returns log p of a text's tokens from `start` on, by transformers alone: one text, one forward pass, no cache."""
    tokens = torch.tensor([[tokenizer.bos, *tokenizer.encode(text)]])
    with torch.no_grad():
        logprobs = reference(tokens).logits.double().log_softmax(-1)[0, start - 1 : -1]
    return float(logprobs.gather(1, tokens[0, start:, None]).sum())


def assert_agrees(engine, reference, task: CoreTask, items: list[CoreItem]) -> int:
    prompts = [prompt for _, prompt in zip_prompts(task, items, "nanochat")]
    rows = tokenize_prompts(engine.tokenizer, task.kind, prompts, "nanochat")
    for prompt, item, scores in zip(prompts, rows, Scorer(engine).score(rows), strict=True):
        for text, row, score in zip(prompt.texts, item, scores, strict=True):
            assert score.num_cropped == 0
            assert score.logprob == pytest.approx(
                compute_reference_logprob(reference, engine.tokenizer, text, row.start), abs=1e-4
            )
    return sum(len(item) for item in rows)


@pytest.mark.parametrize("family", ["fledgling", "gpt2", "llama"])
def test_log_likelihoods_equal_those_of_transformers(core_tokenizer, core_tasks, tmp_path, family):
    engine = Engine(make_random_model(core_tokenizer.vocab_size, family=family), core_tokenizer)
    reference = load_with_transformers(engine, tmp_path)
    counts = [assert_agrees(engine, reference, task, read_core_items(task)) for task in core_tasks.values()]
    assert sum(counts) == 12 + 12 + 12 + 6 + 6 + 4 + 4


@pytest.mark.parametrize("label", ["arc_easy", "arc_challenge", "hellaswag_zeroshot", "piqa"])
def test_log_likelihoods_of_real_items_equal_those_of_transformers(core_tokenizer, tmp_path, label):
    if not os.environ.get("FLEDGLING_DATA") or find_core_bundle(resolve_data_root()) is None:
        pytest.skip("FLEDGLING_DATA has no CORE bundle")
    task = read_core_tasks(resolve_data_root(), [label])[0]
    engine = Engine(make_random_model(core_tokenizer.vocab_size, context=8192), core_tokenizer)
    reference = load_with_transformers(engine, tmp_path)
    assert_agrees(engine, reference, task, select_items(read_core_items(task), 6, "nanochat"))
