"""`fledgling train dpo` as it is documented, on pairs as people have them."""

import json
import shutil

import pytest

from fledgling.record import read_jsonl
from tests.fast_run import write_pairs, write_recipe

STAGES = '--set=stages=["pretrain", "dpo"]'


pytestmark = pytest.mark.usefixtures("one_thread_known_peak")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder of a run that has been pretrained, without exams."""
    from fledgling.cli import main

    folder = tmp_path_factory.mktemp("dpo")
    recipe = write_recipe(folder)
    assert main(["train", "pretrain", str(recipe), STAGES, "--set=sft.mixture={}"]) == 0
    return folder


def train_dpo(run_command, folder, *settings):
    """Runs the documented command on a pretrained run; returns the lines of metrics.jsonl."""
    shutil.rmtree(folder / "run" / "dpo", ignore_errors=True)
    words = [f"--set={setting}" for setting in ("sft.mixture={}", *settings)]
    code, out, err = run_command("train", "dpo", folder / "fast.toml", STAGES, *words)
    assert code == 0, err
    assert "dpo done" in out
    return read_jsonl(folder / "run" / "dpo" / "metrics.jsonl")


@pytest.mark.parametrize("rows", [2, 4, 7])
def test_two_hundred_pairs_of_one_sentence_fill_no_micro_batch(rows, run_command, pretrained):
    """The last micro-batch has rows of padding, which belong to no pair."""
    file = write_pairs(pretrained / "200.jsonl", 200)
    settings = (f"dpo.pairs={file}", "dpo.batch_size=50", f"dpo.micro_batch_size={rows}", "dpo.steps=none")
    lines = train_dpo(run_command, pretrained, *settings)
    assert [line["step"] for line in lines] == [1, 2, 3, 4], "one pass over 200 pairs"
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "log 2: the policy is the reference"
    assert all(0 <= line["accuracy"] <= 1 for line in lines)


def test_padding_changes_no_bit_of_what_is_learned(run_command, pretrained):
    """As many rows in one micro-batch with padding as in micro-batches of one row without."""
    losses = {
        rows: [
            (line["accuracy"], pytest.approx(line["loss"], rel=1e-4), pytest.approx(line["margin"], abs=1e-4))
            for line in train_dpo(run_command, pretrained, "dpo.steps=3", f"dpo.micro_batch_size={rows}")
        ]
        for rows in (1, 5)
    }
    assert len(losses[1]) == 3 and losses[1] == losses[5]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (["dpo.steps=4"], 4),
        (["dpo.batch_size=20"], 1),  # more than there are pairs
        (["dpo.steps=3", "dpo.eval_every=1", "dpo.sample_every=2", "dpo.save_every=1", "dpo.keep_checkpoints=1"], 3),
        (["dpo.micro_batch_size=none", "dpo.mixture={identity = 1.0}", "dpo.beta=0.5"], 1),
    ],
)
def test_every_setting_of_dpo_runs(settings, steps, run_command, pretrained):
    assert len(train_dpo(run_command, pretrained, *settings)) == steps


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Say 1.", "chosen": "It is 1.", "rejected": "It is 2."},
        {"prompt": [{"role": "user", "content": "Say 1."}], "chosen": "Yes. " * 40, "rejected": "No."},  # cut
        {"chosen": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "b"}], "rejected": "c"},
    ],
    ids=["short", "cut", "messages"],
)
def test_a_single_pair_is_enough(row, run_command, pretrained):
    file = pretrained / "one.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    lines = train_dpo(run_command, pretrained, f"dpo.pairs={file}", "dpo.steps=2")
    assert len(lines) == 2 and all(line["loss"] is not None for line in lines)


@pytest.mark.parametrize("objective", ["ipo", "simpo", "orpo", "kto"])
def test_every_objective_runs(objective, run_command, pretrained):
    lines = train_dpo(run_command, pretrained, f"dpo.objective={objective}", "dpo.steps=2")
    assert all({"accuracy", "margin"} <= line.keys() and line["loss"] is not None for line in lines)
    assert ("baseline" in lines[0]) == (objective == "kto")


def test_a_reward_model_learns_which_answer_is_chosen_and_scores_answers_of_reinforcement(run_command, pretrained):
    """40 pairs whose rejected answers say no; then the run is named in rl.rewards."""
    from fledgling.config import RLConfig, UserError
    from fledgling.infer.request import Completion
    from fledgling.tasks import Question, load_task
    from fledgling.text.tokenizer import Tokenizer
    from fledgling.train.rl.reward import RewardScorer

    file = write_pairs(pretrained / "40.jsonl", 40)
    settings = ("dpo.objective=reward", "dpo.steps=12", "dpo.batch_size=10", "dpo.learning_rate=0.5")
    lines = train_dpo(run_command, pretrained, f"dpo.pairs={file}", *settings)
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and lines[-1]["accuracy"] == 1.0
    words, run = Tokenizer.load(pretrained / "run" / "tokenizer"), pretrained / "run" / "dpo"
    scorer = RewardScorer(RLConfig(rewards={f"model:{run}": 1.0}), words)
    answers = []
    for text in ("It is 7.", "no no "):
        ids = [*words.encode(text), words.assistant_end]
        answers.append(Completion(ids, [0.0] * len(ids), [False] * len(ids), "stop"))
    question = (load_task("counting"), Question("counting", "Say 7.", "7"))
    scores = scorer.score([question] * 2, answers)
    total, parts = scores.total, scores.parts
    assert total[0] > total[1] and list(parts[f"model:{run}"]) == list(total)
    assert scorer.score([question], answers[1:]).total[0] == total[1], "a score depends on no other answer"
    with pytest.raises(UserError, match="scores nothing"):
        RewardScorer(RLConfig(rewards={f"model:{pretrained / 'run' / 'pretrain'}": 1.0}), words)
    with pytest.raises(UserError, match="its tokenizer is not"):
        RewardScorer(RLConfig(rewards={f"model:{run}": 1.0}), Tokenizer.train([], 265, letter_tokens=False))


def test_a_reward_model_is_the_last_stage(run_command, pretrained):
    shutil.rmtree(pretrained / "run" / "dpo", ignore_errors=True)
    code, _, err = run_command(
        "train",
        "dpo",
        pretrained / "fast.toml",
        "--set=sft.mixture={}",
        "--set=dpo.objective=reward",
        '--set=stages=["pretrain", "dpo", "rl"]',
    )
    assert code != 0 and "let dpo be the last of stages" in err
