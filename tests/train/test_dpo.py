"""DPO: the loss of packed pairs is the mean of the paper's loss over pairs computed one by one."""

import json
import re

import numpy as np
import pytest
import torch

from fledgling.config import DPOConfig, ModelConfig, UserError
from fledgling.data.batch import IGNORE_INDEX
from fledgling.model.transformer import Transformer
from fledgling.runtime.world import World
from fledgling.text.conversation import render_conversation, render_prompt
from fledgling.text.preferences import parse_pair
from fledgling.train.dpo import PreferenceStream
from fledgling.train.preference_data import check_preferences, load_preferences, render_pair
from fledgling.train.rollout import pack_rollouts
from tests.text.chat_templates import TALK, TEMPLATES, tokenizer_of
from tests.train.rl.small_problems import tokenizer

ROWS = [
    {"prompt": "Hi", "chosen": "Hello there.", "rejected": "no"},
    {"messages": [{"role": "user", "content": "Go"}], "chosen": "left", "rejected": "right or left"},
    {
        "chosen": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "a"}],
        "rejected": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "bbb"}],
    },
]


def model(seed: int) -> Transformer:
    policy = Transformer(ModelConfig(tokenizer().vocab_size, 2, 32, 2, 2, 64))
    policy.initialize(seed)
    torch.manual_seed(seed)
    for parameter in policy.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return policy.requires_grad_(False)


def likelihood(policy: Transformer, conversation: dict) -> float:
    """Returns log p of the last answer, from the logits of this conversation alone."""
    tokens = torch.tensor(render_conversation(tokenizer(), conversation).tokens.tolist())
    begin = len(render_prompt(tokenizer(), {"messages": conversation["messages"][:-1]}))
    logprobs = policy.compute_logits(policy(tokens[None, :-1]))[0].log_softmax(-1)
    return float(logprobs.gather(1, tokens[1:, None])[begin - 1 :].sum())


def test_the_loss_of_packed_pairs_is_the_mean_over_pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    policy, reference = model(1), model(2)
    pairs = load_preferences(str(file), False, tokenizer(), 65, print)
    config = DPOConfig(batch_size=3, beta=0.3)
    stream = PreferenceStream(pairs, config, 0, 2, tokenizer().bos, World.start("cpu"), policy, reference)
    batches = stream.next()
    count = sum(int((batch.targets != IGNORE_INDEX).sum()) for batch in batches)
    loss = sum(float(stream.loss(policy, batch)) for batch in batches) / count
    margins = []
    for row in ROWS:
        chosen, rejected = parse_pair(row, "here")
        gains = [likelihood(policy, answer) - likelihood(reference, answer) for answer in (chosen, rejected)]
        margins.append(gains[0] - gains[1])
    assert loss == pytest.approx(np.mean(np.log1p(np.exp(-0.3 * np.array(margins)))), rel=1e-4)
    metrics = stream.metrics()
    assert metrics["accuracy"] == pytest.approx(np.mean([m > 0 for m in margins]))
    assert metrics["margin"] == pytest.approx(np.mean(margins), rel=1e-3)


def test_pairs_with_nothing_to_prefer_are_left_out_and_counted(tmp_path):
    file, lines = tmp_path / "pairs.jsonl", []
    same = {"prompt": "Hi", "chosen": "yes", "rejected": "yes"}
    late = {"prompt": "Hi", "chosen": "q" * 120 + "good", "rejected": "q" * 120 + "bad"}  # equal where they are cut
    file.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, same, late]))
    assert len(load_preferences(str(file), False, tokenizer(), 65, lines.append)) == len(ROWS)
    assert lines[0].startswith(f"dpo: 2 of {len(ROWS) + 2} pairs are left out")
    assert "the chosen and the rejected answer are the same" in lines[0]
    assert check_preferences(str(file), False).startswith(
        f"1 of {len(ROWS) + 2} rows left out"
    )  # before any is tokenized
    file.write_text(json.dumps(same) + "\n")
    with pytest.raises(UserError, match=r"none of the 1 pairs can be learned from; .*:1: the chosen"):
        check_preferences(str(file), False)
    file.write_text(json.dumps(late) + "\n")
    with pytest.raises(UserError, match=r"none of the 1 pairs .* are the same in the 65 tokens of a row; raise model"):
        load_preferences(str(file), False, tokenizer(), 65, lines.append)


def test_only_the_last_answer_is_learned():
    turns = [{"role": r, "content": c} for r, c in (("user", "A"), ("assistant", "b"), ("user", "C"))]
    chosen, rejected = parse_pair({"prompt": turns, "chosen": "dd", "rejected": "e"}, "here")
    assert chosen["messages"][:-1] == rejected["messages"][:-1] == turns


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"prompt": "Hi", "chosen": "yes"}, 'no "rejected"'),
        ({"chosen": "yes", "rejected": "no"}, "begin with different words"),
        ({"prompt": "Hi", "chosen": "yes", "rejected": " "}, "has no text"),
        ({"prompt": [{"role": "king", "content": "Hi"}], "chosen": "yes", "rejected": "no"}, "role"),
    ],
)
def test_the_error_of_a_line_that_is_no_pair_names_the_line(line, why, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(UserError) as caught:
        load_preferences(str(file), False, tokenizer(), 65, print)
    assert why in str(caught.value) and ":2" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["qwen3", "deepseek r1"])
def test_the_answers_of_a_pair_are_apart_and_after_their_prompt_by_any_chat_template(name):
    """Qwen's writes no BOS, by which documents could be recognized."""
    by_template = tokenizer_of(TEMPLATES[name])
    rejected = [*TALK[:3], {"role": "assistant", "content": "<think>\nit is 3\n</think>\n\n12"}]
    rollout, _ = render_pair(by_template, ({"messages": TALK}, {"messages": rejected}), 200, "here")
    prompt = render_prompt(by_template, {"messages": TALK[:3]})
    (batch,) = pack_rollouts([rollout], 199, 1, by_template.bos)
    for number in (1, 2):
        ids = batch.tokens[0][batch.document_ids[0] == number].tolist()
        assert ids[: len(prompt)] == prompt and len(ids) > len(prompt)
    assert int(batch.document_ids.max()) == 3, "padding"


def test_pairs_longer_than_a_row_are_cut_and_logged(tmp_path):
    file, notices = tmp_path / "pairs.jsonl", []
    file.write_text(json.dumps({"prompt": "Hi", "chosen": "word " * 40, "rejected": "no"}) + "\n")
    (pair,) = load_preferences(str(file), False, tokenizer(), 65, notices.append)
    assert len(pair.tokens) <= 65 and "1 of 1 pairs" in notices[0]


def test_pairs_that_do_not_fit_are_left_out_and_counted_and_none_at_all_is_an_error(tmp_path):
    file, notices = tmp_path / "pairs.jsonl", []
    long = {"prompt": "word " * 90, "chosen": "yes", "rejected": "no"}
    file.write_text("".join(json.dumps(line) + "\n" for line in [ROWS[0], long] * 3))
    assert len(load_preferences(str(file), False, tokenizer(), 65, notices.append)) == 3
    assert "dpo: 3 of 6 pairs are left out" in notices[0] and "pairs.jsonl:2" in notices[0]
    file.write_text((json.dumps(long) + "\n") * 4)
    with pytest.raises(UserError, match=r"none of the 4 pairs can be learned from; .*jsonl:1.*raise model"):
        load_preferences(str(file), False, tokenizer(), 65, notices.append)


JUDGED = [
    {"prompt": "Hi", "completion": "Hello there.", "label": True},
    {"prompt": "Go", "completion": "left", "label": False},
    {"prompt": "A?", "completion": "bbb", "label": "true"},
]


def test_ktos_loss_of_packed_answers_is_the_mean_over_answers_with_the_baseline_of_exchanged_ones(tmp_path):
    file = tmp_path / "judged.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in JUDGED))
    policy, reference, world = model(1), model(2), World.start("cpu")
    answers = load_preferences(str(file), True, tokenizer(), 65, print)
    config = DPOConfig(objective="kto", batch_size=3, undesirable_weight=2.0)
    stream = PreferenceStream(answers, config, 0, 2, tokenizer().bos, world, policy, reference)
    batches = stream.next()
    loss = sum(float(stream.loss(policy, batch)) for batch in batches) / sum(batch.target_count for batch in batches)

    def gain(prompt: str, answer: str) -> float:
        conversation, _ = parse_pair({"prompt": prompt, "chosen": answer, "rejected": "x"}, "here")
        return likelihood(policy, conversation) - likelihood(reference, conversation)

    order = [
        next(row for row in JUDGED if answer_of(row) in tokenizer().decode(rollout.tokens))
        for rollout in map(stream._select_rollout, range(3))
    ]
    exchanged = [
        gain(row["prompt"], other["completion"]) for row, other in zip(order, order[1:] + order[:1], strict=True)
    ]
    baseline = max(0.0, float(np.mean(exchanged)))
    assert stream.baseline == pytest.approx(baseline, abs=1e-4)
    signs = [1 if row["label"] in (True, "true") else -1 for row in JUDGED]
    gains = [gain(row["prompt"], row["completion"]) for row in JUDGED]
    weights = [1 if sign > 0 else 2 for sign in signs]
    values = [w / (1 + np.exp(s * 0.1 * (g - baseline))) for w, s, g in zip(weights, signs, gains, strict=True)]
    assert loss == pytest.approx(np.mean(values), rel=1e-4)
    assert set(stream.metrics()) == {"accuracy", "margin", "baseline"}


def answer_of(row: dict) -> str:
    return row["completion"]


def test_pairs_are_read_from_any_file_with_columns_of_other_names(tmp_path):
    (tmp_path / "p.csv").write_text("Frage,gut,schlecht\nHi,Hello.,no\n")
    source = f"{tmp_path / 'p.csv'}?prompt=Frage&chosen=gut&rejected=schlecht"
    assert len(load_preferences(source, False, tokenizer(), 65, print)) == 1
    for named, problem in (
        ("prompt=Frgae&chosen=gut&rejected=nein", '"Frgae" that'),
        ("answer=gut", "?answer= names no"),
    ):
        with pytest.raises(UserError, match=re.escape(problem)):
            load_preferences(f"{source.partition('?')[0]}?{named}", False, tokenizer(), 65, print)
    assert [rollout.reward for rollout in load_preferences(source, True, tokenizer(), 65, print)] == [1.0, 0.0]
