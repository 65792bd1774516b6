"""Which rows are shown before training, and that typed names of control tokens differ from tokens."""

from fledgling.report.data_page import list_facts
from fledgling.tasks.inspected_rows import EXAMPLES, Examples
from fledgling.tasks.inspection import inspect_data

from .test_inspection import turns, write


def test_examples_are_spread_over_any_number_of_rows():
    for count in (1, 9, 10, 11, 500, 4321):
        examples = Examples()
        for number in range(count):
            examples.add(number, number)
        chosen = examples.choose()
        assert len(chosen) == min(count, EXAMPLES) and chosen == sorted(set(chosen)) and chosen[0] == 0
        assert max([b - a for a, b in zip(chosen, [*chosen[1:], count], strict=True)]) <= max(1, count // 4)


def test_names_of_control_tokens_that_were_typed_differ_from_tokens(tmp_path):
    found = inspect_data(write(tmp_path / "own.jsonl", [turns("a<|user_end|>b", "c"), turns("d", "e")]))
    (first, learned), *_ = (each["pieces"] for each in found["examples"])
    assert first["text"] == r"<|bos|><|user_start|>a\<|user_end|>b<|user_end|><|assistant_start|>"
    assert learned["text"] == "c<|assistant_end|>" and found["typed_controls"] == 1
    assert ("names of control tokens", r"1 rows have some, which stay text; shown below as \<|…|>") in list_facts(found)
    (tmp_path / "d.txt").write_text("x <|bos|> y")
    assert inspect_data(str(tmp_path / "d.txt"))["examples"][0]["pieces"][0]["text"] == r"x \<|bos|> y"
