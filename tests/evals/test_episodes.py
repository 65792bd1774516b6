"""Episodes in the engine: each answer has its own, its output is forced, and its text is a transcript."""

import itertools
import json

import pytest

from fledgling.evals.episodes import make_tools, read_answers, read_transcript
from fledgling.infer.sampling import SamplingParams
from fledgling.tasks import load_task
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.rollout import Rollout
from tests.chain_model import make_chain


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["find it with guess(1) higher lower yes "] * 20, 330, letter_tokens=True)


def make_player(tokenizer, call):
    """An engine that calls the tool once with `call`, whatever is asked, and then answers "7"."""
    t = tokenizer
    called = [t.assistant_start, t.python_start, *t.encode(call), t.python_end]
    assert len(set(called)) == len(called), "a chain has each token once"
    return make_chain(t, dict([*itertools.pairwise(called), (t.output_end, t.encode("7")[0])]), 256)


def test_every_answer_has_its_own_episode_and_what_the_tool_says_is_forced(tokenizer):
    player, task = make_player(tokenizer, "guess(1)"), load_task("env:guessing")
    questions = [(task, task.get_practice_question(i, 1)) for i in range(3)]
    tools = make_tools([*questions, (load_task("arithmetic"), load_task("arithmetic").get_practice_question(0, 1))])
    assert tools[3] is None and len({id(tool) for tool in tools}) == 4
    prompts = [[tokenizer.assistant_start]] * 3
    completions = player.generate(prompts, SamplingParams(temperature=0.0, max_new_tokens=60), tools=tools[:3])
    texts = read_answers(tokenizer, [task] * 3, [completion.tokens for completion in completions])
    assert [json.loads(text) for text in texts] == [{"calls": ["guess(1)"], "answer": "7"}] * 3
    assert [task.score(question, text) for (_, question), text in zip(questions, texts, strict=True)] == [0.0] * 3
    for completion in completions:
        first = completion.tokens.index(tokenizer.output_start)
        last = completion.tokens.index(tokenizer.output_end)
        assert completion.forced == [first <= i <= last for i in range(len(completion.tokens))]
        rollout = Rollout.from_completion([tokenizer.assistant_start], completion, 1.0, 1.0)
        learned = rollout.tokens[rollout.sampled].tolist()  # no token of a tool is a target
        output = tokenizer.encode("higher")
        assert tokenizer.output_start not in learned and tokenizer.output_end not in learned
        assert output not in [learned[i : i + len(output)] for i in range(len(learned))]


def test_calls_that_were_not_run_are_not_in_the_transcript(tokenizer):
    t = tokenizer
    long = [t.python_start, *t.encode("guess(1)"), t.python_end, t.output_start, *t.encode("error: too long")]
    run = [t.python_start, *t.encode("guess(2)"), t.python_end, t.output_start, *t.encode("lower"), t.output_end]
    unanswered = [t.python_start, *t.encode("guess(3)")]
    tokens = [*t.encode("so "), *long, t.output_end, *run, *t.encode("it is "), *unanswered]
    assert json.loads(read_transcript(t, tokens)) == {"calls": ["guess(2)"], "answer": "it is "}
