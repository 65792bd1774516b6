"""Tests ablations: equal FLOPs, differences paired by seed, resumable."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest

from fledgling.cli import main
from fledgling.config import UserError, load_recipe
from fledgling.plan.flops import training_flops_per_token
from fledgling.scaling import ablation
from fledgling.scaling.ablation import (
    VARIANTS,
    Ablation,
    Trial,
    choose_variants,
    compute_effects,
    confidence_margin,
    parse_variants,
    plan_ablation,
)
from fledgling.scaling.results import SweepRun, load_sweep
from tests.all_stages import text_file
from tests.scaling.synthetic_sweep import make_run


def trial(variant: str, seed: int, bits: float) -> Trial:
    run = SweepRun(f"{variant}-s{seed}", 2, 1e12, {"all parameters": 7}, 5, 100, bits, bits, bits, 1.0)
    return Trial(variant, seed, run)


def test_differences_are_paired_by_seed():
    """The seeds differ by far more than the variant does; the pairing still separates them."""
    base, gaps = [1.5, 1.9, 1.7], [0.010, 0.012, 0.011]
    trials = [trial("base", seed, bits) for seed, bits in enumerate(base)]
    trials += [trial("worse", seed, bits + gap) for seed, (bits, gap) in enumerate(zip(base, gaps, strict=True))]
    trials += [trial("lucky", 0, 1.4), trial("lucky", 9, 1.0), trial("better", 0, 1.4), trial("better", 1, 1.8)]
    by_name = {effect.variant: effect for effect in compute_effects(trials)}
    assert list(by_name) == ["base", "lucky", "better", "worse"] and by_name["base"].difference == 0
    worse = by_name["worse"]
    assert worse.difference == pytest.approx(0.011) and worse.seeds == 3 and worse.verdict == "worse"
    assert worse.high - worse.difference == pytest.approx(4.303 * 0.001 / 3**0.5, rel=1e-3)  # Student's t, 2 degrees
    lucky = by_name["lucky"]
    assert lucky.seeds == 1 and lucky.low is None and lucky.verdict == "not significant"
    assert by_name["better"].low == pytest.approx(-0.1) and by_name["better"].high == pytest.approx(-0.1)
    assert confidence_margin([1.0]) is None and confidence_margin([0.0, 2.0]) == pytest.approx(12.706, rel=1e-4)
    values = [float(number % 2) for number in range(18)]
    assert confidence_margin(values) == pytest.approx(2.1098 * stdev(values) / 18**0.5, rel=1e-4), "17 degrees"


def test_every_variant_is_a_recipe_at_equal_flops():
    small = ("model.depth=2", "model.heads=2")
    runs = plan_ablation(Ablation(lambda more: load_recipe("scaling", (*small, *more)), VARIANTS, 2, 1e12, Path("x")))
    assert len(runs) == 2 * (len(VARIANTS) + 1) and [name for name, *_ in runs].count("base") == 2
    assert runs[0][0] == "base" and {seed for _, seed, _ in runs[: len(VARIANTS) + 1]} == {0}
    for name, seed, recipe in runs:
        flops = (
            training_flops_per_token(recipe.model.resolve(4096)) * recipe.pretrain.batch_tokens * recipe.pretrain.steps
        )
        assert abs(flops / 1e12 - 1) < 0.02, name
        changed, same = (replace(one.pretrain, steps=1, save_every=1) for one in (recipe, runs[0][2]))
        tables = (recipe.model, recipe.optimizer, changed), (runs[0][2].model, runs[0][2].optimizer, same)
        assert tables[0] != tables[1] or name == "base"
        assert recipe.seed == runs[0][2].seed + seed


def test_a_variant_that_is_the_base_is_rejected():
    def load(more):
        return load_recipe("scaling", ("model.preset=nanochat-2026", *more))

    for name in ("smear", "nanochat-2026"):
        variants = {"head-gates": VARIANTS["head-gates"], name: VARIANTS[name]}
        with pytest.raises(UserError, match=f"{name}: the base has it"):
            plan_ablation(Ablation(load, variants, 1, 1e13, Path("x")))


def test_all_leaves_out_what_the_base_has_but_not_what_was_named_too():
    def load(more):
        return load_recipe("scaling", ("model.preset=nanochat-2026", *more))

    lines = []
    variants = choose_variants("all", load, lines.append)
    (line,) = lines
    left_out = set(line.partition(": ")[2].split(", "))
    assert {"smear", "nanochat-2026"} <= left_out and variants.keys() == VARIANTS.keys() - left_out
    plan_ablation(Ablation(load, variants, 1, 1e13, Path("x")))
    assert "smear" in choose_variants("smear,all", load, lines.append) and "smear" not in lines[1]
    assert choose_variants("smear", load, lines.append) == {"smear": VARIANTS["smear"]} and len(lines) == 2


def test_an_unknown_variant_is_rejected():
    assert parse_variants("gelu, optimizer.momentum=0.9+model.tie_embeddings=true") == {
        "gelu": VARIANTS["gelu"],
        "optimizer.momentum=0.9+model.tie_embeddings=true": ("optimizer.momentum=0.9", "model.tie_embeddings=true"),
    }
    with pytest.raises(UserError, match='did you mean "swiglu"'):
        parse_variants("swigly")
    with pytest.raises(UserError, match="nothing to change"):
        parse_variants(",")
    with pytest.raises(UserError, match="base: a budget"):
        plan_ablation(Ablation(lambda more: load_recipe("scaling", more), {}, 1, 1e9, Path("x")))


def test_an_ablation_runs_resumes_and_prints_its_effects(tmp_path, capsys):
    text = text_file(tmp_path)
    settings = [
        f'tokenizer.sources=["{text}"]', f'pretrain.mixture={{"{text}"=1.0}}', "tokenizer.vocab_size=330",
        "model.depth=1", "model.width=16", "model.heads=2", "model.context=32", "pretrain.batch_tokens=128",
        "pretrain.micro_batch_size=4", "run.dtype=float32", "run.compile=off", "run.threads=1", "run.device=cpu",
    ]  # fmt: skip
    out = tmp_path / "out"
    command = ["scaling", "run", "--budgets", "1.6e8", "--out", str(out), *(w for s in settings for w in ("--set", s))]
    assert main([*command, "--ablate", "tied", "--seeds", "1", "--json"]) == 0
    effects = json.loads(capsys.readouterr().out)["effects"]
    assert [effect["variant"] for effect in effects] == ["base", "tied"] and effects[1]["low"] is None
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/pretrain/metrics.jsonl")}
    assert main([*command, "--ablate", "tied,model.qk_norm=false", "--seeds", "2"]) == 0
    output = capsys.readouterr()
    assert "variant minus base" in output.out and "model.qk_norm=false" in output.out
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in before.items()), "a finished run was retrained"
    by_name = {effect.variant: effect for effect in compute_effects(ablation.load_trials(out)[0])}
    assert {name: effect.seeds for name, effect in by_name.items()} == {"base": 2, "tied": 2, "model.qk_norm=false": 2}
    assert (
        by_name["tied"].parameters == by_name["base"].parameters - 330 * 16
        and by_name["tied"].low < by_name["tied"].high
    )
    page = (out / "ablation.html").read_text()
    assert "model.qk_norm=false" in page and page.count("<circle") == 2
    assert main([*command[:3], "2e8", *command[4:], "--ablate", "tied"]) == 1
    assert "an ablation with other settings" in capsys.readouterr().err
    with pytest.raises(UserError, match="no finished run"):
        load_sweep(out)


def test_a_copied_run_counts_once_and_is_named(tmp_path):
    for name, seed, noise in (("base", 0, 0.0), ("base", 1, 0.01), ("gelu", 0, -0.02), ("gelu", 1, -0.001)):
        run = make_run(tmp_path / f"{name}-s{seed}", 1, 1e13, noise)
        facts = {"variant": name, "seed": seed}
        (run / "cell.json").write_text(json.dumps(json.loads((run / "cell.json").read_text()) | facts))
    (honest,) = compute_effects(ablation.load_trials(tmp_path)[0])[1:]
    for name in ("gelu-s1 (copy)", "gelu-s1.bak", "a"):  # before and after the run's own name
        shutil.copytree(tmp_path / "gelu-s1", tmp_path / name)
    trials, notes = ablation.load_trials(tmp_path)
    (effect,) = compute_effects(trials)[1:]
    assert effect == honest and effect.seeds == 2 and effect.verdict == "not significant"
    assert notes == [
        f"{name} is left out: it is the same run as gelu-s1" for name in ("a", "gelu-s1 (copy)", "gelu-s1.bak")
    ]
    page = ablation.build_ablation_page(tmp_path, trials, [honest], notes).read_text()
    assert all(note in page for note in notes)


def test_seeds_of_a_sweep_are_an_error(capsys):
    assert main(["scaling", "run", "--seeds", "2"]) == 1
    assert "--seeds 2 has no effect without --ablate" in capsys.readouterr().err
