"""[tokenizer], [run] and the recipe itself."""

from typing import Any

import pytest
import torch

from fledgling.cli import main
from fledgling.plan.plan import make_plan
from fledgling.record import checkpoint, read_jsonl
from fledgling.train import run
from fledgling.train.data_preparer import DataPreparer
from fledgling.train.hooks import NO_EVALS

from .outcomes import differ, final_weights, recipe_of

RUN = "out init_from init_context init_rope device dtype compile threads".split()  # noqa: SIM905
RUN += ["fp8", "recompute", "max_rollbacks", "loggers", "data_dir", "hardware", "ranks"]
TOP = "name description seed stages".split()  # noqa: SIM905

TOKENIZER: dict[str, Any] = {
    "vocab_size": 320,
    "max_characters": 3000,
    "max_digits": 2,
    "letter_tokens": False,
    "sources": '["{folder}/other.txt"]',
}


@pytest.mark.parametrize("key", TOKENIZER)
def test_a_setting_of_the_tokenizer_changes_its_ids(key, folder, tmp_path):
    value = str(TOKENIZER[key]).replace("{folder}", str(folder)).replace("False", "false")
    plain, other = (
        DataPreparer(recipe_of(folder, *settings), tmp_path / str(number)).load_or_train_tokenizer().fingerprint()
        for number, settings in enumerate(
            [["tokenizer.vocab_size=323"], ["tokenizer.vocab_size=323", f"tokenizer.{key}={value}"]]
        )
    )
    assert plain != other


def test_another_seed_is_another_run(folder, tmp_path):
    weights = [
        final_weights(recipe_of(folder, f"seed={seed}", f"run.out={tmp_path / str(seed)}"), "pretrain")
        for seed in (1, 2)
    ]
    assert differ(*weights)


def test_every_setting_of_a_run_has_its_effect(folder, tmp_path, capsys):
    out = tmp_path / "other"
    found = checkpoint.find_latest_checkpoint(folder / "run" / "pretrain" / "checkpoints")
    settings = [
        *(f"run.out={out}", f"run.init_from={found}", "run.device=cpu", "run.dtype=bfloat16", "run.threads=2"),
        *("run.max_rollbacks=1", f"run.data_dir={tmp_path}", "run.compile=off"),
        *(f"optimizer.{role}_lr=1e-12" for role in ("matrix", "embedding", "head", "scalar")),
        "run.recompute=on",
        *("name=renamed", "description=Described."),
    ]
    recipe = recipe_of(folder, *settings)
    assert run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    assert torch.get_num_threads() == 2
    notices = " ".join(line["text"] for line in read_jsonl(out / "pretrain" / "notices.jsonl"))
    assert "bfloat16, not compiled" in notices and "recompute their activations in backward" in notices
    assert (out / "pretrain" / "checkpoints" / "step-000000").exists() or any(
        int(path.name[5:]) == 0 for path in (out / "pretrain" / "checkpoints").glob("step-*")
    ), "a run that may roll back saves its first weights"
    start, end = (checkpoint.load_checkpoint(path).tensors["model"] for path in (
        found, checkpoint.find_latest_checkpoint(out / "pretrain" / "checkpoints")
    ))  # fmt: skip
    assert all(torch.allclose(end[name], value, atol=1e-6) for name, value in start.items()), "it began with these"
    written = (out / "recipe.toml").read_text(encoding="utf-8")
    assert 'name = "renamed"' in written and "Described." in written


def test_assumed_hardware_and_ranks_change_the_plan(folder):
    plain, other = (make_plan(recipe_of(folder, *s)) for s in ([], ["run.hardware=h100", "run.ranks=2"]))
    assert plain["hardware"] != other["hardware"]
    assert plain != make_plan(recipe_of(folder, "run.ranks=2"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["run.device=cuda"], "cuda"),
        (["run.loggers=['nowhere']"], "nowhere"),
        (["run.init_from=nowhere"], "nowhere"),
        (["run.dtype=float64"], "float32, bfloat16, float16"),
        (["run.fp8=true"], "run.fp8"),
        (["run.compile=maybe"], "run.compile"),
        (["stages=['sft', 'pretrain']"], "stages"),
        (["stages=[]"], "stages"),
        (["run.hardware=h10"], "h10"),
    ],
)
def test_what_a_run_cannot_do_is_rejected_in_one_line(settings, named, folder, tmp_path, capfd):
    if named == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    words = [f"--set={setting}" for setting in ("sft.mixture={}", f"run.out={tmp_path}", *settings)]
    verb = ["plan"] if named == "h10" else ["train", "pretrain"]
    assert main([*verb, str(folder / "fast.toml"), *words]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert named in lines[-1] and lines[-1].startswith("error: ")
