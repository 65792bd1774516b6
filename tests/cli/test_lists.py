"""Options that take a list read commas and repetitions alike, and name what cannot be converted."""

import pytest
from cyclopts import App

from fledgling.cli.lists import CountList, NameList, NumberList, SpacedCountList


def parse(*words: str) -> dict[str, tuple]:
    app, found = App(), {}

    @app.default
    def read(
        *, names: NameList = (), counts: CountList = (), numbers: NumberList = (), spaced: SpacedCountList = (1, 8)
    ) -> None:
        found.update(names=names, counts=counts, numbers=numbers, spaced=spaced)

    with pytest.raises(SystemExit):
        app(words)
    return found


def test_commas_and_repetitions_are_the_same():
    assert parse("--names", "a,b", "--names", "c")["names"] == ("a", "b", "c")
    assert parse("--counts", "1, 2", "--counts", "3")["counts"] == (1, 2, 3)
    assert parse("--numbers", "1e13,2e13")["numbers"] == (1e13, 2e13)
    assert parse("--spaced", "1", "2,3")["spaced"] == (1, 2, 3)
    assert parse()["spaced"] == (1, 8)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--counts", "1,x"), "got 1,x; expected whole"),
        (("--numbers", "1;2"), "got 1;2; expected"),
        (("--names", ","), "got no value; expected one or more"),
        (("--spaced", ""), "got no value; expected one or more"),
    ],
)
def test_what_cannot_be_converted_is_named(words, line, capsys):
    assert parse(*words) == {}
    printed = capsys.readouterr()
    assert line in printed.out + printed.err
