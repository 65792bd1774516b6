"""The model card: what it quotes is what its own code reaches."""

import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from fledgling import export
from fledgling.config import AdapterConfig, ModelConfig
from fledgling.evals.chat import Exam, answer_exams, measure_exam
from fledgling.export.model_card import describe_stored, find_run_dir, render_model_card
from fledgling.export.write_hf import write_hf
from fledgling.infer.engine import Engine
from fledgling.record import Recorder
from fledgling.tasks.task import GeneratedTask, Question, score_exact_match
from fledgling.text.tokenizer import Tokenizer
from tests.chain_model import list_adding_successors, make_chain
from tests.text.chat_templates import TEMPLATES, tokenizer_of

CONFIG = ModelConfig(
    vocab_size=330, depth=2, width=32, heads=4, kv_heads=2, context=1024, intermediate_size=96, preset="nanochat-2025"
)
RECIPE = 'name = "owl"\nseed = 7\n'
ANSWERS = ("5", "5", "6", "5")  # the model says 5 to everything


@pytest.fixture(scope="module")
def adder() -> Engine:
    """A model that calls the calculator and then says 5; without the calculator it says "=" alone."""
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)
    return make_chain(tokenizer, list_adding_successors(tokenizer, "5"), 128)


@pytest.fixture(scope="module")
def exam() -> Exam:
    questions = tuple(Question("sums", f"{n} plus something?", answer) for n, answer in enumerate(ANSWERS))
    task = GeneratedTask(
        "sums", lambda *_: questions[0], lambda _: ["wording"], lambda question: question.answer, score_exact_match
    )
    return Exam("sums", task, questions)


@pytest.fixture(scope="module")
def exported(adder, exam, tmp_path_factory) -> Path:
    """The exported model of a run whose exam was measured by the engine, with its card."""
    run = tmp_path_factory.mktemp("run")
    with Recorder(run / "sft", "sft", 10, quiet=True) as recorder:
        for m in measure_exam(exam.name, answer_exams(adder, [exam])[0]):
            recorder.log_evaluation(10, **asdict(m.with_tools(adder.tool_name)))
            recorder.log_evaluation(10, m.name, 1.0, n=1, tools="calculator")  # the first one alone
        recorder.log_evaluation(10, "bits_per_byte", 1.5, 1.4, 1.6, 64)
    model = adder.source
    card = render_model_card(model.config, model.count_parameters(), adder.tokenizer, {"stage": "sft", "step": 10}, run)
    return write_hf(run / "out", model.config, model.state_dict(), adder.tokenizer, card)


def read_card_rows(card: str) -> dict[str, dict[str, str]]:
    """Returns the rows of the card's table of measurements, by what they are of."""
    lines = card.split("## Measured during training")[1].split("## Use")[0].splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[header.index("what")]: dict(zip(header, row, strict=True)) for row in rows}


def test_the_cards_code_reaches_the_score_that_the_card_quotes(exported, exam, monkeypatch):
    """A quoted score that needs the calculator, next to code that has none, is a score of something else."""
    pytest.importorskip("transformers")
    card = (exported / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(exported)
    monkeypatch.syspath_prepend(str(exported))
    monkeypatch.delitem(sys.modules, "calculator", raising=False)
    names: dict = {}
    exec(compile(code, os.fspath(exported / "README.md"), "exec"), names)
    answers = [names["answer"](question.prompt) for question in exam.questions]
    monkeypatch.delitem(sys.modules, "calculator", raising=False)
    score = sum(map(exam.task.score, exam.questions, answers)) / len(answers)
    quoted = read_card_rows(card)["sums"]
    assert quoted["tools"] == "calculator" and quoted["n"] == "4"
    assert float(quoted["value"]) == pytest.approx(score) == 0.75
    assert "it reaches the same values" in " ".join(card.split())


def test_without_the_calculator_the_score_is_another(adder, exam):
    """The check above can fail: plain generation of the same weights has no right answer."""
    prompts = [[adder.tokenizer.assistant_start]]
    (completion,) = adder.generate(prompts, use_tools=False)
    assert exam.task.score(exam.questions[0], adder.tokenizer.decode(completion.tokens)) == 0


def test_every_score_on_the_card_says_its_tools(exported, tmp_path, adder):
    rows = read_card_rows((exported / "README.md").read_text())
    assert rows["sums"]["tools"] == "calculator" and rows["bits_per_byte"]["tools"] == ""
    (tmp_path / "sft").mkdir()
    line = {"step": 3, "name": "old", "value": 0.9, "low": 0.8, "high": 1.0, "n": 50, "baseline": 0.1}
    (tmp_path / "sft" / "evals.jsonl").write_text(json.dumps(line) + "\n")
    model = adder.source
    card = render_model_card(model.config, 1, adder.tokenizer, {"stage": "sft", "step": 3}, tmp_path)
    assert read_card_rows(card)["old"]["tools"] == "not recorded"


STORED = {
    "bfloat16": (("bfloat16",), "these files hold the weights in bfloat16, with which nothing"),
    "int4": (("float32", "int4"), "the matrices of the blocks in int4 and the other weights in float32, with"),
    "int8 of float16": (
        ("float16", "int8"),
        "the matrices of the blocks in int8 and the other weights in float16, with",
    ),
    "folded": (("float32", None, True), "the weights, the norms' multiplied into the matrices, with which nothing"),
}


@pytest.mark.parametrize("name", STORED)
def test_a_card_of_other_weights_than_those_that_were_measured_claims_nothing_for_them(name, tmp_path, adder):
    with Recorder(tmp_path / "sft", "sft", 10, quiet=True) as recorder:
        recorder.log_evaluation(10, "sums", 0.75, n=4, baseline=0.1, tools="calculator")
    given, expected = STORED[name]
    card = render_model_card(
        adder.source.config, 1, adder.tokenizer, {"stage": "sft", "step": 10}, tmp_path, describe_stored(*given)
    )
    text = " ".join(card.split())
    assert f"these files hold {expected.removeprefix('these files hold ')}" in text
    assert "were measured with the weights of this checkpoint, not with those in these files" in text
    assert "reaches the same values" not in text


def test_the_scores_of_an_adapter_on_quantized_weights_say_so(tmp_path, adder):
    with Recorder(tmp_path / "sft", "sft", 10, quiet=True) as recorder:
        recorder.log_evaluation(10, "sums", 0.75, n=4, baseline=0.1, tools="calculator")
    for kind, expected in (
        ("nf4", "checkpoint, an adapter on nf4 weights (merged here), in the"),
        ("none", "checkpoint, in"),
    ):
        adapter = {"config": asdict(AdapterConfig(quantization=kind)), "base": "../base"}
        state = {"stage": "sft", "step": 10, "adapter": adapter}
        card = render_model_card(adder.source.config, 1, adder.tokenizer, state, tmp_path)
        assert f"measured with the weights of this {expected}" in " ".join(card.split())


def test_no_other_format_quotes_scores():
    """A file of other weights than those that were measured has nothing to claim: the card alone reads scores."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in Path(export.__file__).parent.glob("*.py")}
    readers = {name for name, text in sources.items() if "evals.jsonl" in text or "summarize_run" in text}
    assert readers == {"model_card"}
    assert {name for name, text in sources.items() if "render_model_card(" in text} == {"model_card"}


def test_of_a_skill_a_card_quotes_the_test_alone_and_says_how_many_wordings_it_has(tmp_path, adder):
    with Recorder(tmp_path / "sft", "sft", 10, quiet=True) as recorder:
        for end, value in (("", 0.99), ("_dev", 0.9), ("_test", 0.8), ("_practice", 0.95)):
            clusters = {"clusters": 72, "cluster_unit": "wordings"}
            recorder.log_evaluation(10, f"arithmetic{end}", value, 0.7, 1.0, 200, 0.1, tools="calculator", **clusters)
    model = adder.source
    rows = read_card_rows(render_model_card(model.config, 1, adder.tokenizer, {"stage": "sft", "step": 10}, tmp_path))
    assert [name for name in rows if name.startswith("arithmetic")] == ["arithmetic_test"]
    assert "200, 72 wordings" in rows["arithmetic_test"].values()


def test_a_vocabulary_without_calls_has_code_without_them(tmp_path, adder):
    document = adder.tokenizer.tokenizer_json
    kept = [token for token in document["added_tokens"] if "python" not in token["content"]]
    plain = Tokenizer({**document, "added_tokens": kept})
    with Recorder(tmp_path / "sft", "sft", 10, quiet=True) as recorder:
        recorder.log_evaluation(10, "sums", 0.5, n=4, baseline=0.1, tools="none")
    model = adder.source
    card = render_model_card(model.config, 1, plain, {"stage": "sft", "step": 10}, tmp_path)
    assert "calculator" not in card and "it does not reach the values that need a tool" in " ".join(card.split())
    assert read_card_rows(card)["sums"]["tools"] == "none"
    out = write_hf(tmp_path / "out", model.config, model.state_dict(), plain, card)
    assert not (out / "calculator.py").exists()


def test_the_card_of_an_imported_layout_asks_through_its_template(tmp_path, adder):
    with Recorder(tmp_path / "sft", "sft", 10, quiet=True) as recorder:
        recorder.log_evaluation(10, "sums", 0.5, n=4, baseline=0.1, tools="none")
    tokenizer = tokenizer_of(TEMPLATES["qwen3"])
    card = render_model_card(adder.source.config, 1, tokenizer, {"stage": "sft", "step": 10}, tmp_path)
    assert "A chat model of" in card and "tokenizer.apply_chat_template(" in card and "The sea" not in card
    assert "as exams without tools did, so that it reaches the same values" in " ".join(card.split())


def test_a_card_has_the_figures_of_the_checkpoint(adder):
    card = render_model_card(CONFIG, 1234567, adder.tokenizer, {"stage": "sft", "step": 1500, "recipe": RECIPE}, None)
    assert card.startswith("---\nlibrary_name: transformers\n") and "\n# owl\n" in card
    for row in (
        "| parameters | 1,234,567 |",
        "| layers x width | 2 x 32 |",
        "| heads | 4 of 8, 2 for keys and values |",
        "| feed-forward | relu2, 96 wide |",
        "| context | 1,024 tokens |",
        "| trained until | step 1,500 of sft |",
        "| seed | 7 |",
    ):
        assert row in card
    assert "NanoChatForCausalLM" in card and "Measured during training" not in card


def test_a_corrupt_recipe_leaves_the_name_out(adder):
    card = render_model_card(CONFIG, 9, adder.tokenizer, {"recipe": "name = [", "name": "imported"}, None)
    assert "\n# imported\n" in card and "| seed |" not in card


def test_the_run_of_a_checkpoint_is_found(tmp_path):
    checkpoint = tmp_path / "sft" / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    assert find_run_dir(checkpoint) is None
    (tmp_path / "recipe.toml").write_text(RECIPE)
    assert find_run_dir(checkpoint) == tmp_path
    assert find_run_dir(tmp_path / "bases" / "sft" / "step-00000010-46d240c18d66") is None, "weights that were replaced"


def test_a_card_quotes_no_score_of_other_weights(tmp_path, adder):
    with Recorder(tmp_path / "sft", "sft", 10, quiet=True) as recorder:
        recorder.log_evaluation(5, "sums", 0.25, n=4, baseline=0.1, tools="none")
        recorder.log_evaluation(10, "sums", 0.75, n=4, baseline=0.1, tools="none")
    config = adder.source.config
    cards = [render_model_card(config, 1, adder.tokenizer, {"stage": "sft", "step": step}, tmp_path) for step in (5, 7)]
    assert read_card_rows(cards[0])["sums"]["value"] == "0.2500"
    assert "Measured during training" not in cards[1] and "No evaluation of these weights was recorded" in cards[1]
