"""Multiple choice: the prompt, the score of a letter, and the two forms of a row."""

from fledgling.tasks import multiple_choice
from fledgling.tasks.task import Question


def test_the_prompt_shows_the_letters_as_the_reply_has_them():
    text = multiple_choice.format_prompt("Which?", ["red", "blue", "green"])
    assert text == (
        "Multiple Choice question: Which?\n- red=A\n- blue=B\n- green=C\n\n"
        "Respond only with the letter of the correct answer."
    )
    question = Question("arc_easy", text, "B", {}, ("A", "B", "C"))
    assert [multiple_choice.score_letter(question, answer) for answer in ("B", "B.", "(b)", " B\n")] == [1.0] * 4
    assert [multiple_choice.score_letter(question, answer) for answer in ("A", "", "blue", "B or C", "AB")] == [0.0] * 5


def test_the_hub_s_form_of_a_row_gives_the_same_example():
    computed = {"question": "Which?", "choices": ["red", "blue"], "answer": 1}
    hub = {"question": "Which?", "choices": {"text": ["red", "blue"], "label": ["1", "2"]}, "answerKey": "2"}
    auxiliary = {"train": {**computed, "subject": ""}}
    examples = [multiple_choice.parse_row("arc_easy", row, "here:1") for row in (computed, hub, auxiliary)]
    assert examples[0] == examples[1] == examples[2] and examples[0].reply == "B"
