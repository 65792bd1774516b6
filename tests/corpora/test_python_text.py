"""Python files: docstrings, comments and code are extracted, and documentation is cleaned."""

import textwrap

import pytest

from fledgling.corpora.python_text import (
    clean_documentation,
    drop_empty_headings,
    is_noise,
    scan_python,
    unwrap_lines,
)

SOURCE = textwrap.dedent('''\
    #!/usr/bin/env python
    """The module."""

    # A block of comment
    # in two lines.
    #
    #     indented = example
    TABLE = {"key": """no docstring""", 'hash': "# no comment"}  # stays

    class Bird(Base):
        """A bird.

        It sings.
        """

        async def sing(self, text="# not"):
            r"""Sing \\d times."""
            # aside
            return f"""{text}"""

        def fly(self):
            """Only this."""

    add_docstr(torch.abs, r"""abs(input) -> Tensor""" + tail)
    def after(): return '"""'
    ''')


def test_docstrings_are_found_with_their_owners():
    assert scan_python(SOURCE).docstrings == [
        ("", "The module."),
        ("Bird", "A bird.\n\nIt sings."),
        ("Bird.sing", "Sing \\d times."),
        ("Bird.fly", "Only this."),
        ("torch.abs", "abs(input) -> Tensor"),
    ]


def test_comment_blocks_are_found_and_the_remaining_code_is_valid():
    text = scan_python(SOURCE)
    assert text.comments == ["A block of comment\nin two lines.\n\n    indented = example", "aside"]
    compile(text.code, "code", "exec")
    assert "pass" in text.code and '"# no comment"}  # stays' in text.code
    assert "A bird" not in text.code and "aside" not in text.code and "abs(input)" not in text.code


@pytest.mark.parametrize("text", ["", "'", '"""', "#", "def", "x = '''\n", '"\\', "class A:\n    '''doc"])
def test_invalid_python_raises_nothing(text):
    scan_python(text)


def test_wrapped_prose_is_joined_and_structure_is_kept():
    prose = """\
This sentence runs over the end of the line, so that it is continued on
the next one, and this one
stands alone because the line before was short.
- an item of a list that is long enough to be wrapped, and therefore has
  a second line
- another item
>>> example = "a line of code that is long enough to look like prose, but is none"
"and its output"
name (str): a parameter with a description that continues on the next line and
    is indented there
other (int): the next one"""
    assert unwrap_lines(prose).split("\n") == [
        "This sentence runs over the end of the line, so that it is continued on the next one, and this one",
        "stands alone because the line before was short.",
        "- an item of a list that is long enough to be wrapped, and therefore has a second line",
        "- another item",
        '>>> example = "a line of code that is long enough to look like prose, but is none"',
        '"and its output"',
        "name (str): a parameter with a description that continues on the next line and is indented there",
        "other (int): the next one",
    ]


def test_cleaning_drops_markup_noise_and_legal_text():
    text = """\
Title
=====
See :func:`~torch.abs` and ``code`` and “quotes”.

.. versionadded:: 3.1

Copyright 2001, all rights reserved by those who hold them.

0x00 0x01 0x02 0x03 1234 5678 9012 3456 7890 1234

Что-то совсем другое, чего модель не прочтёт."""
    assert clean_documentation(text) == ['Title\nSee `torch.abs` and `code` and "quotes".']
    assert is_noise("x = f(a[0], b[1]); y = {k: v for k in z}", strict=True)
    assert not is_noise("The table is resized when it is two thirds full.", strict=True)


def test_headings_without_text_are_dropped():
    parts = ["Examples", "Returns:", "A value.", "See Also", "Notes"]
    assert drop_empty_headings(parts) == ["Returns:", "A value."]
