"""Races: equal time of steps, one text, interleaved seeds, resumable, other programs' results next to them."""

import itertools
import json
from pathlib import Path

import pytest

import fledgling
from fledgling.cli import main
from fledgling.config import UserError, load_recipe
from fledgling.record import read_jsonl
from fledgling.runtime.exit_codes import INTERRUPTED, STOPPED
from fledgling.scaling import race, race_run
from fledgling.scaling.race_results import Point, RaceRun, drop_copies, rank_runs, read_points, result_rows

SETTINGS = [
    *("tokenizer.vocab_size=330", "model.depth=1", "model.width=16", "model.heads=2", "model.context=32"),
    *("pretrain.batch_tokens=128", "pretrain.micro_batch_size=4", "pretrain.save_every=2", "run.dtype=float32"),
    *("run.compile=off", "run.threads=1", "run.device=cpu"),
]


@pytest.fixture
def command(tmp_path):
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    sources = sorted((Path(fledgling.__file__).parent / "model").glob("*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    parts = [{"text": text[start : start + 400]} for start in range(0, 160_000, 400)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(part) + "\n" for part in parts))
    where = ["--text", str(tmp_path / "text.jsonl"), "--out", str(tmp_path / "out")]
    return lambda *words: [
        "bench",
        "learn",
        *words,
        "--minutes",
        "0.01",
        "--points",
        "3",
        "--held-out-kb",
        "4",
        *where,
        *sets,
    ]


def assert_ends_with_the_step_that_reaches_the_time(run: Path) -> None:
    """Asserts that the last step is the first one that reaches .6 s, however long it took."""
    seconds = [line["race_seconds"] for line in read_jsonl(run / "pretrain" / "metrics.jsonl")]
    assert sum(seconds[:-1]) < 0.6 <= sum(seconds), run.name


def test_recipes_and_checkouts_learn_for_the_same_time_and_are_compared_with_other_programs(command, tmp_path, capsys):
    other = tmp_path / "theirs.jsonl"
    lines = [{"steps": 5, "seconds": 0.1, "bits": 7.5}, {"steps": 9, "seconds": 0.2, "bits": 7.25}]
    other.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"steps": 99, "seconds": 9.0, "bits": 1.0}]))
    tree = Path(fledgling.__file__).parent.parent
    words = command("base=", "tied", f"old={tree}:quickstart", str(other), "--seeds", "1")
    words[words.index(str(other))] = f"theirs={other}"
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    by_name = {result["name"]: result for result in result["race"]}
    assert next(iter(by_name)) == "base" and set(by_name) == {"base", "tied", "old", "theirs"}
    for name in ("base", "tied", "old"):
        (points,) = (run["points"] for run in by_name[name]["runs"])
        assert_ends_with_the_step_that_reaches_the_time(tmp_path / "out" / f"{name}-s0")
        assert len(points) == 3, name
        assert points[-1]["tokens"] == 128 * points[-1]["steps"] and points[-1]["flops"] > 128 * 330 * 16
    assert by_name["theirs"]["bits_per_byte"] == 7.25 and by_name["theirs"]["seconds"] == 0.2
    assert by_name["tied"]["runs"][0]["parameters"] == by_name["base"]["runs"][0]["parameters"] - 330 * 16
    results = [json.loads((tmp_path / "out" / f"{name}-s0" / "race.json").read_text()) for name in ("base", "old")]
    assert results[0]["bytes"] == results[1]["bytes"] and results[0]["tokenizer"] == results[1]["tokenizer"]
    page = (tmp_path / "out" / "race.html").read_text()
    assert page.count("<svg") == 2 and "theirs" in page
    before = (tmp_path / "out" / "base-s0" / "points.jsonl").stat().st_mtime_ns
    assert main(words) == 0 and "minutes of steps" in capsys.readouterr().out
    assert (tmp_path / "out" / "base-s0" / "points.jsonl").stat().st_mtime_ns == before, "a finished run ran again"
    assert main(command("base=+model.depth=2", "tied")) == 1
    assert "put another NAME= before" in capsys.readouterr().err


def test_a_stopped_run_resumes_with_the_time_that_was_left(command, tmp_path, capsys, monkeypatch):
    class Stopped(race_run.StepClock):
        def end_step(self):
            if self.steps == 5:
                raise KeyboardInterrupt
            return super().end_step()

    with monkeypatch.context() as patch:
        patch.setattr(race_run, "StepClock", Stopped)
        patch.setitem(race_run.CLOCKS, "wall", itertools.count(0, 0.01).__next__)  # the time ends after 60 steps
        assert main(command("base=", "tied", "--seeds", "1")) == INTERRUPTED
    metrics = tmp_path / "out" / "base-s0" / "pretrain" / "metrics.jsonl"
    first, schedule, seen = read_jsonl(metrics), race_run.TimedStage.schedule, []

    def note_steps(stage, progress):
        multiplier = schedule(stage, progress)
        seen.append(stage.clock.steps)
        return multiplier

    monkeypatch.setattr(race_run.TimedStage, "schedule", note_steps)
    assert main(command("base=", "tied", "--seeds", "1")) == 0
    assert seen[0] == 4, "the rate of the first step, too, is that of the time that was used"
    lines = read_jsonl(metrics)
    assert lines[:4] == first[:4], "the steps up to the last checkpoint are kept"
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert_ends_with_the_step_that_reaches_the_time(tmp_path / "out" / "base-s0")
    points = read_jsonl(tmp_path / "out" / "base-s0" / "points.jsonl")
    assert len(points) == 3 and points[-1]["steps"] == len(lines)


def test_processor_time_is_the_time_of_an_idle_machine(monkeypatch):
    clock = race_run.StepClock(race_run.CLOCKS["cpu"])
    monkeypatch.setattr(race_run.time, "process_time", iter((10.0, 14.0)).__next__)
    monkeypatch.setattr(race_run.torch, "get_num_threads", lambda: 2)
    clock.start_step()
    assert clock.end_step()["race_seconds"] == 2.0 and clock.elapsed == 2.0


def test_a_step_that_compiles_counts_as_the_median_of_the_others():
    clock = race_run.StepClock()
    for seconds, compiled in ((9.0, True), (1.0, False), (2.0, False), (3.0, False), (50.0, True)):
        clock.restore_step({"race_seconds": seconds, "race_compiled": compiled, "race_tokens": 7, "race_flops": 9.0})
    assert clock.elapsed == 6.0 + 2 * 2.0 and clock.compiled_seconds == 59.0 and (clock.steps, clock.tokens) == (5, 7)


def test_differences_are_paired_by_seed_and_a_short_result_is_reported():
    def run(name: str, seed: int, bits: float, seconds: float = 60.0) -> RaceRun:
        return RaceRun(name, seed, (Point(1, seconds / 2, 9.0), Point(2, seconds, bits, 120.0, 1e9)), 7)

    runs = [run("base", seed, bits) for seed, bits in enumerate((2.0, 2.4, 2.2))]
    runs += [run("better", seed, bits) for seed, bits in enumerate((1.9, 2.31, 2.09))]
    runs += [RaceRun("theirs", 0, (Point(3, 20.0, 3.0), Point(4, 61.0, 1.0)))]
    results = {result.name: result for result in rank_runs(runs, 60.0)}
    assert list(results) == ["base", "better", "theirs"] and results["base"].verdict == ""
    assert results["better"].difference == pytest.approx(-0.1) and results["better"].verdict == "better"
    assert results["better"].difference_margin == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)
    assert results["base"].margin > 0.4, "seeds differ by more than contestants do"
    assert results["theirs"].bits == 3.0 and results["theirs"].verdict == "not significant"
    rows = {row[0]: row for row in result_rows(list(results.values()), 60.0)}
    assert rows["theirs"][-1] == "not significant; only 20 s" and rows["better"][2] == "-0.1000 ± 0.0248"


def test_a_copied_run_of_a_race_is_no_other_seed_or_contestant():
    points = (Point(1, 30.5, 9.0), Point(2, 61.25, 2.5))
    runs = [RaceRun("base", 0, points, 7), RaceRun("base", 1, points, 7), RaceRun("theirs", 0, tuple(points))]
    other = RaceRun("theirs", 1, (points[0], Point(2, 61.5, 2.5)))
    kept, notes = drop_copies([*runs, other])
    assert kept == [runs[0], other]
    assert [note.split(":")[0] for note in notes] == ["base, seed 1 is left out", "theirs, seed 0 is left out"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"steps": 1, "seconds": 2}', '"bits" is null'),
        ('{"steps": 1, "seconds": 1e999, "bits": 2}', '"seconds" is Infinity'),
        ('{"steps": true, "seconds": 1, "bits": 2}', '"steps" is true'),
        ('{"steps": 1, "seconds": -1, "bits": 2}', '"seconds" is -1'),
        ('{"steps": 9, "seconds": 5, "bits": 2}\n{"steps": 10, "seconds": 4, "bits": 2}', "order of time"),
        ("", "no line"),
        ("[1]", "a list, expected"),
    ],
)
def test_a_bad_line_of_another_program_is_one_line(line, message, tmp_path):
    path = tmp_path / "theirs.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=message) as error:
        read_points(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quickstart"], "two contestants or more, got 1"),
        (["base=", "base=tied"], 'two contestants are called "base"'),
        (["base=", "swigly"], 'no recipe "swigly"'),
        (["base=", "/nowhere:quickstart"], "/nowhere holds no fledgling"),
        (["base=", "model.depth=2"], "expected NAME, RECIPE"),
        (["base=", "deep=+model.dept=2"], "dept"),
        (
            ["base=", "smear"],
            'contestant "smear": the base has it, so there is nothing to compare; leave it out, or change',
        ),
    ],
)
def test_a_bad_contestant_is_one_line(words, message):
    with pytest.raises(UserError, match=message):
        race.parse_contestants(words, "quickstart")


def test_a_base_recipe_that_no_contestant_has_is_an_error():
    with pytest.raises(UserError, match="--recipe d4-cpu has no effect: every contestant has a recipe of its own"):
        race.parse_contestants(["a=quickstart", "b=scaling"], "d4-cpu")
    assert len(race.parse_contestants(["a=quickstart", "b="], "d4-cpu")) == 2
    assert len(race.parse_contestants(["base=", "smear"], "quickstart", ["model.preset=nanochat-2025"])) == 2


OWN = ["tied-then-untied+optimizer.tied_updates=200", "value-embeddings+model.value_gates=true", "smear+seed=9"]


@pytest.mark.parametrize("word", OWN)
def test_a_feature_may_be_given_with_settings_of_its_own(word):
    _, contestant = race.parse_contestants(["base=", word], "quickstart", ["model.preset=nanochat-2025"])
    assert contestant.overrides[-1] == word.partition("+")[2]


def test_the_text_of_a_race_is_read_where_its_overrides_say(tmp_path, monkeypatch):
    class Written(Exception):
        pass

    def write(sources, data_dir, *others):
        assert data_dir == "/elsewhere"
        raise Written

    monkeypatch.setattr(race, "write_race_text", write)
    contestants = race.parse_contestants(["a=", "b=tied"], "quickstart", ["run.data_dir=/elsewhere"])
    with pytest.raises(Written):
        race.run_race(contestants, 1, race.RaceSettings(1.0), tmp_path, print)


def test_another_checkout_that_stops_or_fails_is_reported(tmp_path, monkeypatch):
    job = race_run.Job("quickstart", (), 0, 1.0, str(tmp_path), "old-s0")
    ends = iter((STOPPED, 1))
    monkeypatch.setattr(race.subprocess, "run", lambda *args, **options: type("Done", (), {"returncode": next(ends)})())
    with pytest.raises(race.TrainingStopped):
        race.run_job(job, tmp_path, print)
    with pytest.raises(UserError, match="exit code 1"):
        race.run_job(job, tmp_path, print)


def test_a_run_is_of_the_checkout_and_the_recipe_that_it_began_with(tmp_path):
    lines, job = [], race_run.Job("quickstart", (), 0, 1.0, str(tmp_path), "new-s0")
    for name in ("a", "b"):
        (tmp_path / name / "fledgling").mkdir(parents=True)
        (tmp_path / name / "fledgling" / "__init__.py").write_text(f"# {name}")
    one, other = (race.Contestant("new", "quickstart", tree=tmp_path / name) for name in ("a", "b"))
    for _ in range(2):
        race.check_contestant(job, one, lines.append)
    with pytest.raises(UserError, match=r"new-s0 was trained by .*a; this race asks for .*b: put another NAME="):
        race.check_contestant(job, other, lines.append)
    with pytest.raises(UserError, match=r"asks for this package"):
        race.check_contestant(job, race.Contestant("new", "quickstart"), lines.append)
    assert not lines
    (tmp_path / "a" / "fledgling" / "__init__.py").write_text("# edited")
    race.digest_code.cache_clear()
    race.check_contestant(job, one, lines.append)
    assert "new-s0 began with other code than" in lines[0]
    recipe = tmp_path / "own.toml"
    recipe.write_text((Path(fledgling.__file__).parent / "recipes" / "quickstart.toml").read_text())
    job = race_run.Job(str(recipe), (), 0, 1.0, str(tmp_path), "own-s0")
    race.check_contestant(job, race.Contestant("own", str(recipe)), lines.append)
    with pytest.raises(UserError, match=r"own-s0 was trained with another state of the recipe .*own.toml"):
        race.check_contestant(job, race.Contestant("own", str(recipe), ("seed=5",)), lines.append)


def test_a_text_that_was_edited_since_the_race_began_is_reported(tmp_path):
    text, lines = tmp_path / "text.jsonl", []
    rows = [json.dumps({"text": " ".join(f"Word {n} of {k}." for k in range(60))}) for n in range(200)]
    text.write_text("\n".join(rows))
    for _ in range(2):
        race.write_race_text([str(text)], None, tmp_path / "copy", 1000, lines.append)
    assert len(lines) == 1
    text.write_text("\n".join(rows[:90]))
    race.write_race_text([str(text)], None, tmp_path / "copy", 1000, lines.append)
    text.unlink()
    race.write_race_text([str(text)], None, tmp_path / "copy", 1000, lines.append)
    assert len(lines) == 3 and all("has changed since this race began" in line for line in lines[1:])


def test_a_number_that_no_float_holds_is_named(tmp_path):
    (tmp_path / "theirs.jsonl").write_text('{"steps": 1, "seconds": 1.0, "bits": 1' + "0" * 400 + "}\n")
    with pytest.raises(UserError, match=r'"bits" is 1.*; expected a number of at least 0'):
        read_points(tmp_path / "theirs.jsonl")


def test_a_contestant_without_a_point_in_time_is_named(tmp_path):
    file = tmp_path / "theirs.jsonl"
    file.write_text('{"steps": 3, "seconds": 61.5, "bits": 2.0}\n{"steps": 9, "seconds": 20, "bits": 2.5, "seed": 1}\n')
    runs, notes = race.load_race(tmp_path, [race.Contestant("theirs", results=file)], 1, 60.0)
    assert len(runs) == 2 and [(result.name, result.seeds) for result in rank_runs(runs, 60.0)] == [("theirs", 1)]
    assert notes == [
        "theirs, seed 0 is left out: its first point is at 61.5 s, and the race ends at 60.0 s; measure it earlier, "
        "or race for more --minutes"
    ]


def test_a_race_needs_a_batch_from_which_open_rates_follow():
    by_examples = ["pretrain.batch_tokens=none", "pretrain.examples_per_step=4"]
    with pytest.raises(UserError, match=r"^pretrain\.examples_per_step=4: .* set that instead$"):
        race_run.fill_open_fields(load_recipe("d4-cpu", by_examples))
    given = race_run.fill_open_fields(load_recipe("quickstart", by_examples))
    assert given.pretrain.examples_per_step == 4, "its rates are given"
