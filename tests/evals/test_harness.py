"""The adapter to lm-evaluation-harness: its answers without it, and the harness itself where it is installed."""

import copy
import json
import random
from functools import cache
from math import isfinite

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.config import UserError
from fledgling.evals.harness import (
    compute_loglikelihoods,
    compute_rolling_loglikelihoods,
    encode_pair,
    generate_until,
    run_harness,
)
from fledgling.evals.likelihood import ContinuationRow, Scorer, split_windows
from fledgling.infer.engine import Engine
from fledgling.text.tokenizer import Tokenizer
from tests.evals.random_model import make_random_model
from tests.evals.test_likelihood import CONTEXT, make_engine

TRAINING_TEXTS = {  # of tokenizers whose tokens join digits, letters, spaces and bytes in different ways
    "digits": "the answer is 12, 12 and 21; 1 2 12 121 " * 40,
    "words": "ab abab  ba  abba: a:: b:: 1 1 12 " * 40,
    "bytes": "é€日本語 ñandú 𝄞 日本 语言 ää äö " * 40,
}


def write_random_text(seed: int) -> str:
    """Returns a text of random words over a random alphabet, with its own tokens that span joins."""
    chance = random.Random(seed)
    alphabet = chance.sample("abcdefgh0123456789.:,é€日本ñ𝄞", 6)
    words = ["".join(chance.choices(alphabet, k=chance.randint(1, 4))) for _ in range(12)]
    return "".join(chance.choice(words) + chance.choice(("", " ", "  ")) for _ in range(400))


TRAINING_TEXTS |= {f"random {seed}": write_random_text(seed) for seed in range(3)}


@cache
def make_joining_engine(name: str) -> Engine:
    """A model with random weights whose tokenizer has tokens that span the joins of its training text."""
    tokenizer = Tokenizer.train([TRAINING_TEXTS[name]], 322, max_digits=2)
    return Engine(make_random_model(tokenizer.vocab_size), tokenizer)


@pytest.fixture(scope="module")
def scorer():
    return Scorer(make_engine())


def log_probability(scorer, tokens: list[int], start: int) -> float:
    with torch.no_grad():
        logits = scorer.engine.model.compute_logits(scorer.engine.model(torch.tensor([tokens])))[0].double()
    return float(logits.log_softmax(-1)[start - 1 : -1].gather(1, torch.tensor(tokens[start:])[:, None]).sum())


def test_pairs_are_scored_in_order_with_shared_contexts(scorer):
    tokenizer = scorer.engine.tokenizer
    pairs = [("the fox", " jumps"), ("a dog", " again"), ("the fox", " over"), ("", "the"), ("the fox ", "over")]
    scores = compute_loglikelihoods(scorer, pairs)
    for (context, continuation), (logprob, _) in zip(pairs, scores, strict=True):
        tokens = [tokenizer.bos, *tokenizer.encode(context + continuation)]
        start = 1 + (len(tokenizer.encode(context.rstrip())) if context else 0)
        assert logprob == pytest.approx(log_probability(scorer, tokens, start), abs=1e-4)
    assert scores[2] == pytest.approx(scores[4]), "a space at the context's end belongs to the continuation"
    assert tokenizer.decode(encode_pair(tokenizer, "the fox ", "over").tokens[1:]) == "the fox over"


def test_a_token_over_the_join_is_scored_with_the_end_of_the_context():
    engine = make_joining_engine("digits")
    scorer, tokenizer = Scorer(engine), engine.tokenizer
    assert tokenizer.encode("12") == tokenizer.encode("12 ")[:1], "the tokenizer has the token 12"
    row = encode_pair(tokenizer, "the answer is 1", "2")
    assert tokenizer.decode(row.tokens[row.start :]) == "12"
    joined, other = compute_loglikelihoods(scorer, [("the answer is 1", "2"), ("the answer is 1", "3")])
    assert joined[0] == pytest.approx(log_probability(scorer, row.tokens.tolist(), row.start), abs=1e-4)
    assert joined[0] < 0 and not joined[1], "a random model does not decode it greedily"
    assert compute_loglikelihoods(scorer, [("the answer is 1", "2")])[0][0] == pytest.approx(joined[0], abs=1e-5)
    assert other[0] < 0


@given(st.sampled_from(sorted(TRAINING_TEXTS)), st.data())
@settings(max_examples=15, deadline=None)
def test_log_probabilities_of_pairs_are_negative_and_follow_the_chain_rule(name, data):
    """log p(context and continuation) = log p(tokens before the first scored one) + log p(continuation)."""
    engine = make_joining_engine(name)
    characters = st.text(st.sampled_from([*TRAINING_TEXTS[name][:40], "\n", " ", "x"]), max_size=24)
    context, continuation = data.draw(characters), data.draw(characters.filter(bool))
    scorer = Scorer(engine)
    row = encode_pair(engine.tokenizer, context, continuation)
    assert engine.tokenizer.decode(row.tokens[1:]) == context + continuation
    ((logprob, _),) = compute_loglikelihoods(scorer, [(context, continuation)])
    assert isfinite(logprob) and logprob < 0
    scored = engine.tokenizer.decode_bytes(row.tokens[row.start :])
    assert len(scored) >= len(continuation.encode()), "every character of the continuation is scored"
    whole = compute_rolling_loglikelihoods(scorer, [context + continuation])[0]
    before = log_probability(scorer, row.tokens[: row.start].tolist(), 1) if row.start > 1 else 0.0
    assert whole == pytest.approx(before + logprob, abs=1e-3)


def test_an_empty_continuation_is_rejected(scorer):
    """Its probability is 1: among choices it would always be the best."""
    for context in ("the fox", "", " "):
        with pytest.raises(UserError, match="has no token to score"):
            compute_loglikelihoods(scorer, [(context, "")])


def test_without_bos_the_first_token_is_rejected_by_name():
    document = copy.deepcopy(make_joining_engine("digits").tokenizer.tokenizer_json)
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] != "<|bos|>"]
    plain = Tokenizer(document)
    assert encode_pair(plain, "the answer is 1", "2").start >= 1
    for context in ("", "1"):
        with pytest.raises(UserError, match=r"nothing precedes it.*<\|bos\|>"):
            encode_pair(plain, context, "2")


def test_texts_longer_than_the_context_are_scored_whole(scorer):
    """A context that is too long loses its beginning; of a continuation that is too long every token counts."""
    tokenizer = scorer.engine.tokenizer
    long = "the quick brown fox jumps over the lazy dog " * 5
    ((of_long_context, _),) = compute_loglikelihoods(scorer, [(long, "fox")])
    row = encode_pair(tokenizer, long, "fox")
    kept = row.tokens[-CONTEXT:].tolist()
    assert of_long_context == pytest.approx(
        log_probability(scorer, kept, CONTEXT - len(row.tokens) + row.start), abs=1e-4
    )
    ((of_long_continuation, _),) = compute_loglikelihoods(scorer, [("the", " " + long)])
    row = encode_pair(tokenizer, "the", " " + long)
    windows = list(split_windows(row, CONTEXT))
    assert len(windows) > 1 and sum(len(w.tokens) - w.start for _, w in windows) == len(row.tokens) - row.start
    expected = sum(log_probability(scorer, w.tokens.tolist(), w.start) for _, w in windows)
    assert of_long_continuation == pytest.approx(expected, abs=1e-3)


def test_a_long_text_is_scored_once_in_full_windows(scorer):
    text = "the quick brown fox jumps over the lazy dog " * 5
    tokens = [scorer.engine.tokenizer.bos, *scorer.engine.tokenizer.encode(text)]
    assert len(tokens) > CONTEXT
    windows = [window for _, window in split_windows(ContinuationRow(np.array(tokens, np.int32), 1), CONTEXT)]
    assert [len(window.tokens) for window in windows] == [CONTEXT] * len(windows)
    expected = sum(log_probability(scorer, window.tokens.tolist(), window.start) for window in windows)
    assert compute_rolling_loglikelihoods(scorer, [text, "fox", ""])[0] == pytest.approx(expected, abs=1e-3)
    assert compute_rolling_loglikelihoods(scorer, [""]) == [0], "an empty text has no token"


def test_answers_end_before_their_stop(scorer):
    (answer,) = generate_until(scorer.engine, [("the", {"until": [], "max_gen_toks": 12})])
    assert answer
    stop = answer[3]
    assert generate_until(scorer.engine, [("the", {"until": [stop], "max_gen_toks": 12})]) == [answer.split(stop)[0]]
    assert generate_until(scorer.engine, [("the", {"until": stop, "max_gen_toks": 12})]) == [answer.split(stop)[0]]
    short = generate_until(scorer.engine, [("the", {"max_gen_toks": 2}), ("the", {"max_gen_toks": 12})])
    assert short[1] == answer and answer.startswith(short[0]) and short[0] != answer


def test_what_is_cut_of_requests_for_text_is_reported(scorer):
    """A context is cropped for its own answer, not for the longest answer of the batch."""
    lines: list[str] = []
    long = "the quick brown fox jumps over the lazy dog " * 3
    requests = [
        (long, {"max_gen_toks": 2}),
        ("the", {"max_gen_toks": 500, "do_sample": True}),
        ("fox", {"max_gen_toks": 3}),
    ]
    assert len(generate_until(scorer.engine, requests, lines.append)) == 3
    assert lines == [
        f"1 of 3 requests: answers may take {CONTEXT // 2} tokens, not those of the task",
        "1 of 3 requests: contexts were too long and lost their beginning",
        "1 of 3 requests: answers are greedy where the task samples",
    ]
    lines.clear()
    fitting = "the quick brown fox jumps over the lazy dog a"
    assert CONTEXT // 2 < len(scorer.engine.tokenizer.encode(fitting)) < CONTEXT - 3
    alone = generate_until(scorer.engine, [(fitting, {"max_gen_toks": 2})], lines.append)
    with_long_answer = [(fitting, {"max_gen_toks": 2}), ("the", {"max_gen_toks": CONTEXT // 2})]
    assert generate_until(scorer.engine, with_long_answer, lines.append)[0] == alone[0] and not lines


def test_without_the_harness_the_error_says_what_to_install(scorer):
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"pip install 'fledgling\[lm-eval\]'"):
            run_harness(scorer, ["arc_easy"])
    else:
        pytest.skip("lm-evaluation-harness is installed")


def test_the_harness_runs_a_local_task(scorer, tmp_path):
    pytest.importorskip("lm_eval")
    rows = [{"question": "the fox", "choices": [" jumps", " again", " over"], "gold": n % 3} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "made_up.yaml").write_text(
        f"task: made_up\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'rows.jsonl'}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: gold\ntarget_delimiter: ''\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    results = run_harness(scorer, ["made_up"], include_path=tmp_path)
    assert results["made_up"]["acc,none"] == pytest.approx(1 / 3), "one choice is the most likely; each is right twice"
    with pytest.raises(UserError, match='no task "nothing"'):
        run_harness(scorer, ["nothing"])
