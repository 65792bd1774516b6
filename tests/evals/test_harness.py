"""The adapter to lm-evaluation-harness: its answers without it, and the harness itself where it is installed."""

import json

import pytest
import torch

from fledgling.config import UserError
from fledgling.evals.harness import (
    compute_loglikelihoods,
    compute_rolling_loglikelihoods,
    encode_pair,
    generate_until,
    rolling_windows,
    run_harness,
)
from fledgling.evals.likelihood import Scorer
from tests.evals.test_likelihood import CONTEXT, make_engine


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


def test_a_long_text_is_scored_once_in_full_windows(scorer):
    tokens = list(range(1, 131))
    rows = list(rolling_windows(tokens, 48))
    assert [token for row in rows for token in row.tokens[row.start :].tolist()] == tokens[1:]
    assert all(len(row.tokens) <= 48 for row in rows) and [len(row.tokens) for row in rows[1:]] == [48] * (
        len(rows) - 1
    )
    assert list(rolling_windows([5], 48)) == []
    text = "the quick brown fox jumps over the lazy dog " * 5
    tokens = [scorer.engine.tokenizer.bos, *scorer.engine.tokenizer.encode(text)]
    assert len(tokens) > CONTEXT
    expected = sum(log_probability(scorer, row.tokens.tolist(), row.start) for row in rolling_windows(tokens, CONTEXT))
    assert compute_rolling_loglikelihoods(scorer, [text, "fox"])[0] == pytest.approx(expected, abs=1e-3)


def test_answers_end_before_their_stop(scorer):
    (answer,) = generate_until(scorer.engine, [("the", {"until": [], "max_gen_toks": 12})])
    assert answer
    stop = answer[3]
    assert generate_until(scorer.engine, [("the", {"until": [stop], "max_gen_toks": 12})]) == [answer.split(stop)[0]]
    assert generate_until(scorer.engine, [("the", {"until": stop, "max_gen_toks": 12})]) == [answer.split(stop)[0]]
    short = generate_until(scorer.engine, [("the", {"max_gen_toks": 2}), ("the", {"max_gen_toks": 12})])
    assert short[1] == answer and answer.startswith(short[0]) and short[0] != answer


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
