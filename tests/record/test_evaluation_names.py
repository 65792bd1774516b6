"""Evaluations are named by their wordings, and of a skill only the test is quoted."""

from fledgling.record.evaluation_names import evaluation_label, format_cases, is_quoted, split_evaluation_name

NAMES = ("bits_per_byte", "arithmetic", "arithmetic_test", "arithmetic_dev", "arithmetic_practice", "mmlu", "chatcore")


def test_only_the_test_of_a_skill_is_quoted():
    assert [name for name in NAMES if is_quoted(name, NAMES)] == [
        "bits_per_byte",
        "arithmetic_test",
        "mmlu",
        "chatcore",
    ]
    assert is_quoted("arithmetic", ["arithmetic"]), "an older run has no other"
    assert not is_quoted("arithmetic_dev", ["arithmetic_dev"]), "a dev score is never quoted"


def test_exams_of_older_versions_are_of_their_skill_and_not_quoted():
    old = ["counting", "counting_unseen", "counting_practised", "identity_practised"]
    assert [name for name in old if is_quoted(name, old)] == []
    assert is_quoted("counting_test", [*old, "counting_test"])
    assert split_evaluation_name("counting_practised") == ("counting", "_practised")
    assert [evaluation_label(name, old) for name in old[1:3]] == [
        "counting, unseen wordings",
        "counting, practised wordings",
    ]


def test_a_label_says_in_which_wordings_an_exam_is():
    labels = [evaluation_label(name, NAMES) for name in NAMES]
    assert labels[1:4] == [
        "arithmetic, train wordings",
        "arithmetic, test wordings",
        "arithmetic, dev wordings",
    ]
    assert labels[0] == "bits per byte" and labels[5] == "mmlu"
    assert split_evaluation_name("latest") == ("latest", "") and split_evaluation_name("x_dev") == ("x", "_dev")


def test_cases_say_how_many_are_independent():
    assert format_cases(200, 64, "wordings") == "200, 64 wordings"
    assert format_cases(1200, 1200, "questions") == "1,200" and format_cases(None) == "-"
