"""The table of optional features: two sizes, differences to the plain model, open where nothing is measured yet."""

from benchmarks import features
from benchmarks.__main__ import main
from fledgling.scaling.race_results import Point, RaceRun


def test_the_table_is_collected_after_every_run_and_says_what_is_open(tmp_path, monkeypatch):
    finished, written = [], []

    def run_race(contestants, seeds, settings, out, log, on_finished):
        for seed in range(seeds):
            for place, contestant in enumerate(contestants if out.name == "4x128" else contestants[:1]):
                point = Point(9, 60.0, 2.0 - 0.1 * place + 0.3 * seed, 100.0, 1e9)
                finished.append((out, RaceRun(contestant.name, seed, (point,), 7)))
                on_finished()

    monkeypatch.setattr(features, "run_race", run_race)
    monkeypatch.setattr(features, "load_race", lambda out, *_: ([run for where, run in finished if where == out], []))
    values = features.measure_features(
        ("smear", "normuon"), list(features.SIZES), 1.0, 2, tmp_path, None, "cpu", (), lambda table: written.append(1)
    )
    assert len(written) == 2 * 3 + 2
    table = features.format_features(values)
    assert "| base | 2.1500 ± 1.9059 | 2.1500 ± 1.9059 |" in table
    assert "| smear | -0.1000 ± 0.0000 (2), better | open |" in table
    assert table.splitlines()[0] == "| after 60 s of steps | 4x128 | 4x256 |"


def test_a_feature_that_a_size_has_already_is_left_out_and_the_table_says_so(tmp_path, monkeypatch):
    raced = {}

    def run_race(contestants, seeds, settings, out, *others):
        raced[out.name] = [contestant.name for contestant in contestants]

    monkeypatch.setattr(features, "run_race", run_race)
    values = features.measure_features((), list(features.SIZES), 1.0, 1, tmp_path, None, "cpu", ())
    values["sizes"] = {size: [] for size in features.SIZES}
    assert "grouped" not in raced["4x128"] and raced["4x256"] == ["base", *features.VARIANTS]
    assert "| grouped | the base has it | open |" in features.format_features(values).splitlines()


def test_a_size_at_which_the_base_has_all_that_is_asked_for_is_passed_over(tmp_path, monkeypatch):
    raced, written = [], []
    monkeypatch.setattr(features, "run_race", lambda contestants, seeds, settings, out, *others: raced.append(out.name))
    features.measure_features(("grouped",), list(features.SIZES), 1.0, 1, tmp_path, None, "cpu", (), written.append)
    assert raced == ["4x256"] and written[0]["sizes"] == {"4x128": []}


def test_an_unknown_feature_is_one_line(tmp_path, capsys):
    assert main(["features", "swigly", "--results", str(tmp_path)]) == 1
    assert 'no recipe "swigly"' in capsys.readouterr().err


def test_an_unknown_size_is_one_line(tmp_path, capsys):
    assert main(["features", "--sizes", "9x9", "--results", str(tmp_path)]) == 1
    assert "sizes: got '9x9', expected some of 4x128, 4x256" in capsys.readouterr().err
