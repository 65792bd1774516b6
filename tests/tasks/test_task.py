"""Functions of tasks: the hold-out hash, baselines, and the scoring of answers."""

from fledgling.tasks.task import (
    GeneratedTask,
    Question,
    find_constant_baseline,
    is_held_out,
    label_source,
    score_answers,
)


def test_the_hash_is_the_same_on_every_machine():
    assert [n for n in range(40) if is_held_out("pair", "+", n, 8)] == [2, 5, 9, 17, 21, 24, 35]


def test_the_constant_baseline_is_the_most_frequent_answer():
    questions = [Question("x", "?", answer) for answer in ("yes", "no", "yes", "maybe")]
    assert find_constant_baseline(questions) == ("yes", 0.5)
    assert find_constant_baseline([]) == ("", 0.0)


def test_answers_are_scored_by_their_own_tasks_in_order():
    batches = []

    class CountingTask(GeneratedTask):
        def score_batch(self, pairs):
            batches.append((self.name, len(pairs)))
            return super().score_batch(pairs)

    tasks = [CountingTask(name, None, None, None, lambda q, text, name=name: float(text == name)) for name in "ab"]
    questions = [(tasks[i], Question(tasks[i].name, "?", "")) for i in (0, 1, 0)]
    assert score_answers(questions, ["a", "a", "b"]) == [1.0, 0.0, 0.0]
    assert sorted(batches) == [("a", 2), ("b", 1)], "one call for each task"


def test_two_sources_of_one_name_have_two_labels_and_one_that_moved_has_its_own(tmp_path):
    for folder, text in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "games.py").write_text(text)
    files = {folder: tmp_path / folder / "games.py" for folder in "abc"}
    labels = {folder: label_source(f"env:{file}:Game", [file]) for folder, file in files.items()}
    assert labels["a"] != labels["b"] and labels["a"] == labels["c"]
    assert labels["a"].startswith("env:games.py:Game#") and label_source("env:guessing", []) == "env:guessing"
    files["a"].write_text("another one")
    assert label_source(f"env:{files['a']}:Game", [files["a"]]) != labels["a"], "it was edited"
