"""Functions of tasks: the hold-out hash, baselines, and the scoring of answers."""

from fledgling.tasks.task import GeneratedTask, Question, find_constant_baseline, is_held_out, score_answers


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
