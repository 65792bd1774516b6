"""Every command that README and docs show exists and takes the options they show; links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from fledgling.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands() -> list[str]:
    """Return the lines `$ fledgling ...` of all ```console blocks, each once."""
    found = {}
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("$ fledgling"):
                    found[line.removeprefix("$ ").split(" | ")[0].split(" > ")[0]] = None
    return list(found)


@pytest.mark.parametrize("command", commands())
def test_a_shown_command_parses(command, capsys):
    words = shlex.split(command, comments=True)[1:]
    verb = []
    for word in words:  # a group's own verb belongs to it; what follows are its arguments
        if word.startswith("-") or (verb and main([*verb, word, "--help"]) != 0):
            break
        verb.append(word)
        if len(verb) == 2:
            break
    capsys.readouterr()
    assert main([*verb, "--help"]) == 0
    reported = capsys.readouterr().out
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert option in reported or option in ("--help", "--version"), f"{' '.join(verb)} has no {option}"


def test_there_are_commands_to_check():
    assert len(commands()) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (page.parent / target).exists(), f"{page.name}: {target} is not there"
    for name in re.findall(r"`(fledgling/[\w/]+\.(?:py|toml))`", text):
        assert (ROOT / name).exists(), f"{page.name}: {name} is not there"


def list_anchors(text: str) -> set[str]:
    """Returns the anchors of a page's headings as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_a_heading_find_it(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*\.md|)#([^)\s]+)\)", text):
        other = page.parent / target if target else page
        assert anchor in list_anchors(other.read_text(encoding="utf-8")), f"{page.name}: {target}#{anchor} is not there"


def test_anchors_are_those_of_headings():
    page = "# A step, `run_loop`: one\n```\n# no heading\n```\n## B\n"
    assert list_anchors(page) == {"a-step-run_loop-one", "b"}


def test_pages_that_a_source_names_exist():
    sources = [p for folder in ("fledgling", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
    names = {name for path in sources for name in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", path.read_text("utf-8"))}
    assert len(names) > 10 and [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_the_benchmarks_are_one_page():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1500, "a detailed table belongs on the page of its topic"


def test_the_readme_fits_one_screen_and_names_the_test_command():
    text = PAGES[0].read_text(encoding="utf-8")
    assert text.count("\n") <= 80
    assert "make test" in text and "make quickstart" in text
