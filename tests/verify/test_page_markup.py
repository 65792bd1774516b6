"""What no report has is found in a page, whatever it would do there."""

import hashlib
from pathlib import Path

import pytest

from fledgling import report
from fledgling.report import build_report
from fledgling.verify.page_markup import ATTRIBUTES, PARENTS, STYLES, find_foreign_markup
from tests.report.synthetic_run import make_run

ROW = '<tr><th scope="row">spelling, test wordings</th>'
STYLE_RULES = (
    "tr:nth-child(5) { font-size: 0 }",
    "tr:nth-child(5) { opacity: 0 }",
    "tr:nth-child(5) { color: transparent }",
    "tr:nth-child(5) { position: absolute; left: -9999px }",
    "tr:nth-child(5) td { position: relative; top: 24px }",
    "td { transform: translateY(24px) }",
    "tr { display: flex } td { order: 9 }",
    "table { direction: rtl }",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("run") / "run", scale=0.02)
    return build_report(run).read_text()


def test_a_report_has_no_foreign_markup(page):
    assert find_foreign_markup(page, page) == []
    assert find_foreign_markup(page, "") == [], "its style is known without another page"


def test_the_style_of_reports_is_known_and_stays_known_when_it_changes():
    """A change of style.css adds its digest to STYLES; the others stay there for the pages that have them."""
    style = (Path(report.__file__).parent / "style.css").read_text(encoding="utf-8")
    assert hashlib.sha256(style.encode()).hexdigest() in STYLES and len(STYLES) >= 6


@pytest.mark.parametrize("rule", STYLE_RULES)
def test_a_rule_that_no_version_has_is_found(page, rule):
    (found,) = find_foreign_markup(page.replace("</style>", f"{rule}</style>"), page)
    assert found.startswith(rule[:20])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("</head>", "<STYLE>td { order: 9 }</STYLE></head>"),
        ("</head>", '<style media="all">td { order: 9 }</style></head>'),
        ("</head>", "<style></style></head>"),
        ("</head>", '<meta http-equiv="refresh" content="0"></head>'),
        ("</head>", '<link rel="stylesheet" href="data:text/css,"></head>'),
        (ROW, '<tr><th scope="row" rowspan="2">spelling, test wordings</th>'),
        (ROW, ROW.replace("<tr>", '<tr class="tiles">')),
        (ROW, ROW.replace("<tr>", '<tr dir="rtl">')),
        (ROW, ROW.replace("<tr>", "<tr>0.9")),
        (ROW, f"{ROW}<div>0.9</div>"),
        (ROW, f"<details>{ROW}"),
        (ROW, ROW.replace("<th", "<td><noscript>0.9</noscript></td><th")),
        (ROW, ROW.replace("spelling, test wordings", '<input value="0.9">')),
        (ROW, ROW.replace("<tr>", "<tr\xa0>")),
        (ROW, ROW.replace("spelling", "&#x202e;spelling")),
        ('<ol class="answers">', '<ol class="answers" start="97">'),
        ("<h1>", "<!-- --><h1>"),
        ("<h1>", "<p/><h1>"),
        ("</main>", ""),
        ('viewBox="0 0 380 230"', 'viewBox="0 0 38 23"'),
        ('<svg viewBox="0 0 380 230" role', '<svg viewBox="0 0 100 10" role'),
        ('class="grid"/>', 'class="grid"/><rect y="229" height="200" width="380" class="trough"/>'),
        ('class="grid"/>', 'class="grid"/><text x="3" y="-90" class="end">0.9</text>'),
    ],
)
def test_markup_that_no_report_has_is_found(page, old, new):
    assert old in page, old
    assert find_foreign_markup(page.replace(old, new, 1), page)


def test_a_character_that_reverses_text_is_of_an_early_version_whose_record_has_it(page):
    edited = page.replace("spelling", "&#x202e;spelling", 1)
    assert find_foreign_markup(edited, page) == ["the character U+202E"]
    assert find_foreign_markup(edited, page.replace("spelling", "\ufffdspelling", 1)) == []


def test_the_list_is_closed():
    assert set(ATTRIBUTES) <= set(PARENTS)
    assert {parent for parents in PARENTS.values() for parent in parents.split()} <= set(PARENTS)
    assert len(find_foreign_markup("<a " * 100_000, "")) <= 5, "in bounded time"
    for end in ("</style>", "<style", "}", "x" * 200_000):
        assert find_foreign_markup(f"<style>{end}" * 3, "")
