"""The figures of RUN/report.html, compared with those that the run's record gives. Start with `check_report`.

The page says which lines it was made from. It is rebuilt from these. Where the same code made it, and the run
was not resumed since, both must be equal. Else each line of the page is compared by its figures: a line with the same
words must have the same figures, and a line with other words must have none that the record does not give.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path

from fledgling.config import UserError
from fledgling.report.page_footer import (
    SET_ASIDE,
    drop_facts,
    is_as_written,
    is_of_this_code,
    read_lines_read,
    read_unix_time,
)
from fledgling.report.run_data import RunData, finite_number, load_run_data, nested_table
from fledgling.report.run_page import render_report
from fledgling.verify.check import Check
from fledgling.verify.page_markup import cut_elements, find_foreign_markup
from fledgling.verify.seals import list_deleted

MAX_NAMED = 5  # differences that are named
MAX_PAGE_BYTES = 2**26
MORE = 2**20  # characters that a page may have besides twice those that the record gives
PROVENANCE = "<h2>Provenance</h2>"  # of recipe, environment and data, which later stages rewrite
_LINE_END = re.compile(
    r"</?(?:tr|li|p|h[1-6]|summary|pre|ol|ul|table|thead|tbody|section|details|div|header|main|footer|figure|figcaption"
    r"|title|body)\b[^<>]*>"
)
_TAG = re.compile(r"<[^<>]*>")
_INLINE = re.compile(
    r"</?(?:a|b|code|em|font|i|s|small|span|strong|sub|sup|u|wbr)\b[^<>]*>|<!--[^<>]*-->"
)  # join words
_FIGURE = re.compile(r"[+-]?\d[\d,.]*(?:[kMGT](?!\w))?")


def check_report(run_dir: Path, same_version: bool) -> Check:
    """Compares RUN/report.html with the page that its record gives, without the lines that were added since.

    same_version: whether this version of the package trained the run; another one may have written other figures, and
        those that the record does not give are notes.
    """
    check, path = Check("figures of the report", "figures"), run_dir / "report.html"
    if (run_dir / SET_ASIDE).exists():
        check.notes.append(f"{SET_ASIDE} is of steps from before a stage was resumed or restarted: it is not compared")
    if not path.is_file():
        check.notes.append("no report.html: write it with `fledgling report`")
        return check
    if path.stat().st_size > MAX_PAGE_BYTES:
        check.problems.append(f"report.html has more than {MAX_PAGE_BYTES:,} bytes: no report of a run")
        return check
    page = path.read_bytes().decode("utf-8", "replace")  # as it is: a carriage return of a text is one
    lines_read, present = read_lines_read(page), load_run_data(run_dir)
    if lost := _list_lost(lines_read or {}, present.lines_read):
        check.problems += lost
        return check
    try:
        then, whole = (load_run_data(run_dir, lines_read, time) for time in (read_unix_time(page), math.inf))
    except UserError:
        check.problems.append("report.html says that it was made from no line of this run")
        return check
    if lines_read is not None:
        new = sum(count - lines_read.get(name, 0) for name, count in present.lines_read.items())
        if _has_gone_on(then, present):
            check.notes.append(
                "report.html is older than the run: it was resumed since; `fledgling report` rebuilds it"
            )
        elif new > 0:
            check.notes.append(f"report.html is older than {new} lines of the record: `fledgling report` adds them")
    deleted = list_deleted(run_dir)
    if deleted:
        check.notes.append(f"report.html may have figures of {', '.join(deleted)}, which were deleted: not compared")
    _compare(
        page,
        [then] if then == whole else [then, whole],
        check,
        same_version,
        is_older=_has_gone_on(then, present) or bool(deleted),
    )
    if not check.problems and is_as_written(page) is False:
        check.problems.append("report.html was edited since it was written: it is not what its own digest says")
    return check


def _list_lost(lines_read: Mapping[str, int], present: Mapping[str, int]) -> list[str]:
    """Returns what is wrong with a page that was made from lines which the run does not have."""
    return [
        f"report.html was made from {lines_read[name]} lines of {name}.jsonl, which has {present.get(name, 0)}: "
        "`fledgling report` rebuilds it"
        for name in sorted(lines_read)
        if lines_read[name] > present.get(name, 0)
    ]


def _has_gone_on(run: RunData, present: RunData) -> bool:
    """Returns whether a run has steps, or ends of stages, that the run of a page had not."""
    before = {stage.name: stage for stage in run.stages}
    return any(
        stage.name not in before
        or before[stage.name].last_step < stage.last_step
        or bool(before[stage.name].done) < bool(stage.done)
        for stage in present.stages
    )


def _compare(page: str, runs: Sequence[RunData], check: Check, same_version: bool, is_older: bool) -> None:
    """Adds what differs between a page and the record it is of.

    Args:
        runs: the run when the page was made, by the time of the page, and by its lines alone: clocks may differ.
        is_older: the run was resumed since or has lost files, so that the recipe, the environment and the data may
            differ.
    """
    expected = list(dict.fromkeys(drop_facts(render_report(run)) for run in runs))
    if len(page) > 2 * len(expected[-1]) + MORE:
        check.problems.append(f"report.html has {len(page):,} characters, the record gives {len(expected[-1]):,}")
        return
    stored, same_code = drop_facts(page), is_of_this_code(page)
    check.total = check.checked = sum(bool(_FIGURE.search(word)) for word in _split_words(expected[-1]))
    if stored in expected:
        return
    if same_code and not is_older:
        _compare_words(stored, expected[-1], check)
        return
    sized = [known for run in runs if (known := _with_planned_size(run))]
    made = [read_page_lines(text) for text in (*expected, *map(render_report, sized))]
    found = read_page_lines(page)
    wrong = [*compare_figures(found.lines, [line for each in made for line in each.lines])]
    drawings = {drawing for each in made for drawing in each.drawings}
    others = [drawing for drawing in found.drawings if drawing not in drawings]
    every = [line for each in made for line in (*each.lines, *each.provenance, *each.points)]
    points = [line for drawing in others for line in list_points(drawing)]
    wrong += compare_figures(points, [line for each in made for line in each.points], every)
    if same_code and others and not wrong:
        wrong.append(f"{len(others)} drawings of report.html are not those of the record")
    provenance = [*compare_figures(found.provenance, [line for each in made for line in each.provenance])]
    if not is_older:
        wrong += provenance
    elif provenance:
        check.notes.append(
            f"report.html: {len(provenance)} lines on recipe, environment, data and notices differ from today's"
        )
    styles, made_styles = (cut_elements(text, "style")[1] for text in (page, expected[-1]))
    if foreign := find_foreign_markup(page, expected[-1]):
        what = "which no report has: it may hide, move or replace what the page says"
        check.problems.append(f"report.html has {', '.join(foreign)}, {what}")
    target = check.problems if same_version else check.notes
    target += wrong[:MAX_NAMED]
    if len(wrong) > MAX_NAMED:
        target.append(f"and {len(wrong) - MAX_NAMED} more differences of report.html")
    if not same_code:
        drawn = f", nor are {len(others)} of {len(found.drawings)} drawings" if others else ""
        styled = ", nor is its style" if styles != made_styles else ""
        what = (
            "its figures are compared with the record, its words are not" + drawn + styled + _count_others(found, made)
        )
        check.notes.append(f"report.html was made by other code than this: {what}; `fledgling report` rebuilds it")


def _count_others(found: PageLines, made: Sequence[PageLines]) -> str:
    """Returns how many lines of a page have other words than the record's, and of the record's than the page's."""
    before = {_drop_figures(line) for line in found.lines}
    now = {_drop_figures(line) for each in made for line in each.lines}
    lost = min(sum(_drop_figures(line) not in before for line in each.lines) for each in made)
    other = sum(_drop_figures(line) not in now for line in found.lines)
    return f", {other} of its lines have words that the record does not give, and {lost} of the record's are not in it"


def _with_planned_size(run: RunData) -> RunData | None:
    """Returns the run with the planned number of parameters where no checkpoint is left to count them; else None."""
    total = finite_number(nested_table(run.plan, "parameters").get("total"))
    if total is None or any(stage.parameter_count for stage in run.stages):
        return None
    return replace(run, stages=[replace(stage, parameter_count=round(total)) for stage in run.stages])


def _compare_words(stored: str, expected: str, check: Check) -> None:
    """Adds the places where two pages of the same code differ."""
    texts = [_split_words(page) for page in (stored, expected)]
    differences = [
        f'report.html has "{" ".join(texts[0][a:b])[:80]}" after "{" ".join(texts[0][max(0, a - 4) : a])[:60]}", '
        f'the record gives "{" ".join(texts[1][c:d])[:80]}"'
        for a, b, c, d in find_differences(texts[0], texts[1])
    ]
    check.problems += differences[:MAX_NAMED]
    if len(differences) > MAX_NAMED:
        check.problems.append(f"and {len(differences) - MAX_NAMED} more differences of report.html")
    if not differences:
        check.problems.append("a chart of report.html is not that of the record")


def find_differences(before: list[str], after: list[str]) -> list[tuple[int, int, int, int]]:
    """Returns the parts a:b of `before` that parts c:d of `after` take the place of, as (a, b, c, d) in their order."""
    start, ends = 0, (len(before), len(after))  # what both begin and end with needs no search for the longest match
    while start < min(ends) and before[start] == after[start]:
        start += 1
    while min(ends) > start and before[ends[0] - 1] == after[ends[1] - 1]:
        ends = (ends[0] - 1, ends[1] - 1)
    middle = SequenceMatcher(None, before[start : ends[0]], after[start : ends[1]], autojunk=False)
    return [
        (start + a, start + b, start + c, start + d) for kind, a, b, c, d in middle.get_opcodes() if kind != "equal"
    ]


@dataclass(frozen=True)
class PageLines:
    """The lines of text of a page: rows of tables, tiles, paragraphs; those on its provenance; its drawings."""

    lines: list[str]
    provenance: list[str]
    drawings: list[str]

    @property
    def points(self) -> list[str]:
        """The values of the points of all drawings."""
        return [line for drawing in self.drawings for line in list_points(drawing)]


def read_page_lines(page: str) -> PageLines:
    """Returns the lines of a page, without its style and the facts of its footer."""
    page, drawings = cut_elements(_drop_styles(drop_facts(page)), "svg")
    before, _, provenance = page.partition(PROVENANCE)
    return PageLines(_split_lines(before), _split_lines(provenance), drawings)


def _drop_styles(page: str) -> str:
    return cut_elements(cut_elements(page, "style")[0], "script")[0]


def _split_words(page: str) -> list[str]:
    return _TAG.sub(" ", _drop_styles(page)).split()


def _split_lines(markup: str) -> list[str]:
    """Returns the lines of text. A row of a table is one, wherever its markup is broken; superscripts are digits."""
    rows = []
    for part in markup.split("</tr>"):
        before, start, row = part.partition("<tr")
        rows.append(before + start + " ".join(row.split()))
    markup = _INLINE.sub("", "</tr>".join(rows))
    text = unicodedata.normalize("NFKC", html.unescape(_TAG.sub(" ", _LINE_END.sub("\n", markup))))
    return [" ".join(words) for line in text.splitlines() if (words := line.split())]


def list_points(drawing: str) -> list[str]:
    """Returns the texts of a drawing's points, which have their values, and those that it shows."""
    rest, titles = cut_elements(drawing, "title")
    texts = [*titles, *cut_elements(rest, "text")[1]]
    return [line for text in texts if (line := " ".join(_split_lines(text)))]


def list_figures(line: str) -> list[str]:
    """Returns the figures of a line in their order."""
    return [figure.rstrip(".,") for figure in _FIGURE.findall(line)]


def compare_figures(found: Iterable[str], expected: Sequence[str], others: Sequence[str] = ()) -> Iterable[str]:
    """Yields a text for each line whose figures the expected ones do not give.

    Args:
        expected: a line with the words of one of these must have its figures, in their order.
        others: further lines, whose figures a line with other words may have.
    """
    given, known = set(expected), {figure for line in (*expected, *others) for figure in list_figures(line)}
    of_words: dict[str, list[str]] = defaultdict(list)
    for line in expected:
        of_words[_drop_figures(line)].append(line)
    for line in found:
        figures, words = list_figures(line), _drop_figures(line)
        if line in given or not figures:
            continue
        same = of_words.get(words, []) if words else []
        if same and not any(_is_part(figures, list_figures(other)) for other in same):
            yield f'report.html has "{line[:80]}", the record gives "{same[0][:80]}"'
        elif not same and (unknown := [figure for figure in figures if figure not in known]):
            yield f'report.html has "{line[:80]}", and the record gives no {", ".join(unknown[:3])}'


def _drop_figures(line: str) -> str:
    return " ".join(_FIGURE.sub(" ", line).split())


def _is_part(figures: Sequence[str], other: Sequence[str]) -> bool:
    """Returns whether figures are among others in the same order, as where a column was added since."""
    rest = iter(other)
    return all(figure in rest for figure in figures)
