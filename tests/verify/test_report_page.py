"""The page of a run is compared with its record, whatever the page says of itself."""

import json
import re
import shutil

import pytest

from fledgling.report import build_report
from fledgling.report.page_footer import NO_DIGEST, add_digest
from fledgling.verify.page_markup import cut_elements
from fledgling.verify.report_page import check_report, compare_figures


def edit_page(run, *changes, sealed=True):
    """Replaces patterns of the page once each, and rewrites its digest if `sealed`."""
    page = run / "report.html"
    text = page.read_text()
    for pattern, new in changes:
        text, count = re.subn(pattern, new, text, count=1)
        assert count, pattern
    page.write_text(add_digest(re.sub(r'data-digest="\w*"', NO_DIGEST, text)) if sealed else text)
    return page


OLD = (r'data-made="[^"]*"', 'data-made="1000.0"')
NO_CODE = (r' data-code="\w*"', "")  # as earlier commits of the version wrote it
OTHER_CODE = (r'data-code="\w*"', 'data-code="0123456789abcdef"')
FORGED = (r">(\s*)(\d\.\d{3})\b", r">\g<1>0.123")
CHART = (r'points="[\d.]+,', 'points="1.0,')


def test_an_honest_page_has_the_figures_of_its_record(run):
    check = check_report(run, True)
    assert check.verdict == "holds" and check.checked == check.total > 10 and not check.notes, check


@pytest.mark.parametrize("sealed", [True, False])
def test_a_figure_that_was_changed_is_shown_with_that_of_the_record(copy, sealed):
    number = re.search(FORGED[0], (copy / "report.html").read_text())[2]
    edit_page(copy, FORGED, sealed=sealed)
    problem = check_report(copy, True).problems[0]
    assert "0.123" in problem and f'the record gives "{number}"' in problem


@pytest.mark.parametrize("claims", [[NO_CODE], [OLD, OTHER_CODE]], ids=["other code", "older, of other code"])
def test_a_forged_figure_is_found_whatever_the_page_says_of_its_time_its_code_and_its_digest(copy, claims):
    edit_page(copy, *claims)
    assert check_report(copy, True).problems == []
    shutil.copyfile(copy / "report.html", copy / "honest.html")
    edit_page(copy, FORGED)
    assert any("0.123" in problem and "the record gives" in problem for problem in check_report(copy, True).problems)
    shutil.copyfile(copy / "honest.html", copy / "report.html")
    edit_page(copy, (r"<h1>", "<p>99.9 % of the questions</p><h1>"))
    assert any("the record gives no 99.9" in problem for problem in check_report(copy, True).problems)
    shutil.copyfile(copy / "honest.html", copy / "report.html")
    label = "tokens per second of a median step"
    edit_page(copy, (rf"<dt>{label}</dt><dd>([^<]*)</dd>", rf"<dt>{label}</dt><dd>6</dd>"))
    assert any(f"{label} 6 " in problem for problem in check_report(copy, True).problems), "it is elsewhere"


def test_a_drawing_that_was_changed_is_found_and_of_other_code_noted(copy):
    edit_page(copy, CHART)
    assert check_report(copy, True).problems == ["a chart of report.html is not that of the record"]
    edit_page(copy, OLD)
    assert check_report(copy, True).problems == ["1 drawings of report.html are not those of the record"]
    edit_page(copy, OTHER_CODE)
    check = check_report(copy, True)
    assert check.verdict == "holds" and re.search(r"other code.*, nor are 1 of \d+ drawings, 0 of", check.notes[-1])
    edit_page(copy, (r"<title>value: [^<]*", "<title>value: 98.7 % at sft step 6"))
    assert any("98.7" in problem for problem in check_report(copy, True).problems)


ROW = r"(<tr><th scope=\"row\">bits per byte</th>\s*<td>[^<]*<[^>]*>)([^<]*)"


@pytest.mark.parametrize(
    ("pattern", "new", "word"),
    [
        (ROW, r"\g<1>9<b></b>7<!-- -->.5", "97.5"),
        (ROW, r"\g<1>⁹⁷", "97"),
        (ROW, r"\g<1>\g<2><svg><text>97.0 %</text></svg>", "97.0"),
        ("</body>", "<SCRIPT>document.title = 1</SCRIPT></body>", "SCRIPT"),
        ("<h1>", '<h1 class="a" onclick=x>', "onclick"),
        ("<h1>", "<h1 style='opacity: 0'>", "style"),
        ("</style>", "tr:nth-child(2) { display : none }</style>", "display : none"),
        ("</style>", "h1::after { content: attr(x) }</style>", "content:"),
        ("</style>", "h1::after { c\\\\6f ntent: attr(x) }</style>", "\\"),
        ("</h1>", '<img src="data:,"></h1>', "img"),
    ],
)
def test_a_page_of_other_code_that_shows_something_else_than_its_text_is_found(copy, pattern, new, word):
    edit_page(copy, OTHER_CODE, (pattern, new))
    problems = check_report(copy, True).problems
    assert any(word in problem for problem in problems), problems


def test_a_score_in_the_row_of_another_is_found_and_a_removed_row_is_counted_in_a_page_of_other_code(copy):
    page = (copy / "report.html").read_text()
    shutil.copyfile(copy / "report.html", copy / "honest.html")
    edit_page(copy, OTHER_CODE, (r"<h1>", "<h1> "))
    assert ", 0 of its lines have words that the record does not give, and 0 of" in check_report(copy, True).notes[-1]
    row = re.search(r"<tr><th scope=\"row\">counting[^<]*</th>.*?</tr>", page, re.DOTALL)[0]
    edit_page(copy, (re.escape(row), ""))
    assert ", and 1 of the record's are not in it" in check_report(copy, True).notes[-1]
    score, other = (re.search(r"\d+\.\d+", part)[0] for part in (row.partition("</th>")[2], page.partition("</h1>")[2]))
    assert score != other
    shutil.copyfile(copy / "honest.html", copy / "report.html")
    edit_page(copy, OTHER_CODE, (re.escape(row), row.replace(score, other)))
    assert any(problem.startswith('report.html has "counting') for problem in check_report(copy, True).problems)


def test_a_page_of_other_code_holds_where_its_figures_do(copy):
    edit_page(
        copy, OTHER_CODE, ("Time and speed", "Seconds"), ("<th>steps</th>", ""), ("finished</td><td>", "done</td><td>")
    )
    check = check_report(copy, True)
    assert (check.verdict, check.problems) == ("holds", []) and check.checked == check.total
    assert [note.split(":")[0] for note in check.notes] == ["report.html was made by other code than this"]


def test_a_page_of_another_record_or_version_is_reported(copy):
    evals = copy / "sft/evals.jsonl"
    lines = [json.loads(line) for line in evals.read_text().splitlines()]
    lines = [line | {"value": 0.987} if line["name"] == "bits_per_byte" else line for line in lines]
    evals.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert check_report(copy, True).problems
    edit_page(copy, OTHER_CODE)
    check = check_report(copy, False)
    assert not check.problems and any("the record gives" in note for note in check.notes)
    build_report(copy)
    assert not check_report(copy, True).problems
    (copy / "report.html").unlink()
    assert check_report(copy, True).verdict == "not checked"


def test_lines_that_were_added_after_the_page_are_a_note_and_removed_ones_a_problem(copy):
    evals = copy / "sft/evals.jsonl"
    before = evals.read_text()
    line = json.loads(before.splitlines()[-1]) | {"name": "spelling_test", "value": 0.5, "n": 3}
    evals.write_text(before + json.dumps(line) + "\n")
    check = check_report(copy, True)
    assert (check.verdict, check.problems) == ("holds", []) and "older than 1 lines" in check.notes[0]
    evals.write_text("".join(before.splitlines(keepends=True)[:-1]))
    assert any("lines of sft/evals.jsonl, which has" in problem for problem in check_report(copy, True).problems)


@pytest.mark.parametrize("with_rl", [True, False], ids=["a page within a stage", "a page before it"])
def test_a_page_that_is_older_than_the_run_holds_by_the_lines_it_was_made_from(copy, with_rl):
    kept = copy / "rl.later"
    shutil.copytree(copy / "rl", kept)
    (copy / "rl/done.json").unlink()
    for path in (copy / "rl").glob("*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= 4))
    if not with_rl:
        shutil.rmtree(copy / "rl")
    build_report(copy)
    page = (copy / "report.html").read_text()
    shutil.rmtree(copy / "rl", ignore_errors=True)
    kept.rename(copy / "rl")
    done = json.loads((copy / "rl/done.json").read_text())
    (copy / "rl/done.json").write_text(json.dumps(done | {"time": done["time"] + 1000}))
    recipe = copy / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("seed = 1\n", "seed = 7\n"))
    check = check_report(copy, True)
    assert (check.verdict, check.problems) == ("holds", []), check
    assert "older than the run" in check.notes[0] and "1 lines on recipe, environment" in check.notes[1]
    edit_page(copy, FORGED)
    assert any("0.123" in problem for problem in check_report(copy, True).problems)
    (copy / "report.html").write_text(page.replace("rl/metrics&#34;: 4", "rl/metrics&#34;: 5"))
    assert check_report(copy, True).verdict == ("FAILS" if with_rl else "holds")


@pytest.mark.parametrize("steps", [3, 6, 9])
def test_a_page_of_a_stage_that_has_another_record_is_found(copy, steps):
    path = copy / "rl/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [line | {"time": line["time"] + 1000, "loss": 0.5, "reward": 0.5} for line in lines]
    changed += [changed[-1] | {"step": step} for step in range(len(lines) + 1, steps + 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in changed[:steps]))
    assert check_report(copy, True).verdict == "FAILS"


def test_a_page_with_steps_that_the_run_has_not_is_named(copy):
    shutil.rmtree(copy / "rl")
    problems = check_report(copy, True).problems
    assert any("made from 6 lines of rl/metrics.jsonl, which has 0" in problem for problem in problems)


def test_the_footer_is_compared_except_the_time(copy):
    edit_page(copy, ("from the files of the run alone", "99.9 % on every exam"))
    assert any("99.9 %" in problem for problem in check_report(copy, True).problems)


def test_figures_of_deleted_files_are_left_out_and_all_others_compared(copy):
    for stage in ("pretrain", "sft", "rl"):
        shutil.rmtree(copy / stage / "checkpoints")
    shutil.rmtree(next((copy / "data").iterdir()))
    check = check_report(copy, True)
    assert (check.verdict, check.problems) == ("holds", []), check
    assert "the checkpoints of pretrain" in check.notes[0] and "which were deleted" in check.notes[0]
    edit_page(copy, FORGED)
    assert check_report(copy, True).problems


def test_an_edit_without_a_figure_is_found_by_the_digest(copy):
    edit_page(copy, OTHER_CODE, ("What it can do", "What it does well"), sealed=False)
    assert check_report(copy, True).problems == [
        "report.html was edited since it was written: it is not what its own digest says"
    ]


def test_a_page_that_says_nonsense_about_its_lines_is_compared_with_the_whole_record_and_named(copy):
    page = copy / "report.html"
    for value in ("{", "[]", '{"sft/evals": -1}', '{"sft/evals": "x"}'):
        page.write_text(re.sub(r'data-lines="[^"]*"', f"data-lines='{value}'", page.read_text()))
        assert check_report(copy, True).verdict == "FAILS"
    build_report(copy)
    edit_page(copy, (r'data-lines="[^"]*"', 'data-lines="{}"'))
    assert check_report(copy, True).problems == ["report.html says that it was made from no line of this run"]
    page.write_text(page.read_text() + "<p>7</p>" * 400_000)
    build_report(copy)
    page.write_text(page.read_text() + "<svg><title>" * 400_000)
    assert "characters, the record gives" in check_report(copy, True).problems[0]


def test_a_line_with_the_words_of_another_must_have_its_figures_in_their_order():
    expected = ["sft finished 6 3.1k 2 s", "rl finished 6 1.5k 9 s", "# 4"]
    assert not list(compare_figures(["sft finished 6 3.1k 2 s", "sft done: 6 9", "no figure"], expected))
    for line in ("sft finished 3.1k 6 2 s", "rl finished 6 3.1k 9 s", "rl finished 6 1.5k -9 s", "sft done: 7"):
        assert len(list(compare_figures([line], expected))) == 1, line
    assert not list(compare_figures(["sft finished 3.1k 2 s"], expected)), "a column came later"


def test_elements_are_cut_in_one_pass_whatever_the_markup_is():
    assert cut_elements("a<svg x>1</svg>b<svg>2</svg>", "svg") == ("a b ", ["<svg x>1", "<svg>2"])
    assert cut_elements("<svg" * 3, "svg") == ("", ["<svg<svg<svg"])
