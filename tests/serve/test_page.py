"""The page in a browser, against a server: what a user does, and that no text runs as script."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from fledgling.serve.service import Service
from fledgling.serve.worker import Worker
from tests.serve.conftest import serving
from tests.serve.markup_payloads import FIND_MARKUP, PAYLOADS, STORE_PAYLOADS
from tests.waits import wait_for


@pytest.fixture
def page(browser, server):
    """A new page that has found its model; a script error or a policy violation fails the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 700})
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    expected = "Failed to load resource"  # the browser's message for a response of 400, which the page shows
    opened.goto(server[0])
    opened.locator("#status", has_text="Connected to tiny").wait_for()
    yield opened
    assert [text for text in problems if not text.startswith(expected)] == []
    context.close()


def send(page, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")
    page.locator("#send").wait_for()


def settings(page, **values) -> None:
    page.click("#settings-button")
    for name, value in values.items():
        page.fill(f"#{name}", str(value))
    page.click("#settings-button")


def test_a_conversation_survives_a_reload_and_branches(page):
    settings(page, max_tokens=8, seed=1)
    send(page, "the quick fox")
    assert page.locator(".message").count() == 2
    first = page.locator(".message .body").last.inner_text()
    settings(page, seed=2)
    page.get_by_role("button", name="Answer again").click()
    page.get_by_text("2/2").wait_for()
    page.locator("#send").wait_for()
    page.get_by_role("button", name="Previous version").click()
    assert page.locator(".message .body").last.inner_text() == first
    page.get_by_role("button", name="Edit").click()
    page.fill(".editor", "lazy dog")
    page.press(".editor", "Enter")
    page.locator("#send").wait_for()
    assert page.locator(".message.user .body").inner_text() == "lazy dog"
    page.reload()
    assert page.locator(".message.user .body").inner_text() == "lazy dog"
    page.get_by_role("button", name="Previous version").first.click()
    assert page.locator(".message.user .body").inner_text() == "the quick fox"


def test_stop_keeps_the_answer_so_far_and_frees_the_row(page, server):
    settings(page, max_tokens=90, temperature=2, top_k=0)
    page.fill("#message", "fox")
    page.press("#message", "Enter")
    page.locator(".message.assistant .body p").wait_for()
    page.keyboard.press("Escape")
    page.locator("#send").wait_for()
    wait_for(lambda: server[1].load == 0)
    assert page.locator(".message").count() == 2


def test_tokens_show_their_alternatives(page):
    settings(page, max_tokens=5)
    send(page, "fox")
    page.get_by_role("button", name="Probabilities").click()
    page.locator(".token").first.hover()
    assert page.locator("#tip").inner_text().count("%") == 5
    page.locator(".token").nth(1).focus()
    assert page.locator("#tip").inner_text().count("%") == 5


def test_a_tool_call_is_folded_with_its_result(browser, adder):
    with serving(adder) as (address, _):
        page = browser.new_page()
        page.goto(address)
        send(page, "fox")
        call = page.locator("details.call")
        call.wait_for()
        assert "2+3" in call.locator("summary").inner_text() and call.get_attribute("open") is None
        call.locator("summary").click()
        assert "= 5" in call.locator("pre").inner_text()
        page.close()


def test_an_error_of_the_server_is_shown_as_text(page):
    page.click("#settings-button")
    page.fill("#system", "<img src=x onerror='window.hit=1'> " * 40)
    page.click("#settings-button")
    send(page, "fox")
    assert "whole context" in page.locator(".failed").inner_text()
    assert page.evaluate("window.hit") is None


def test_no_text_runs_as_script_or_loads_anything(browser, server):
    """Every payload as text of user, model, tool, title and error: none runs, none creates an element or a handler, and
    none makes the browser ask for anything but the page's own files."""
    page = browser.new_page()
    page.goto(server[0])
    page.evaluate(STORE_PAYLOADS, [PAYLOADS, "fledgling"])
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.reload()
    page.locator(".message").nth(2 * len(PAYLOADS) - 1).wait_for()
    page.locator("#conversations .open").nth(len(PAYLOADS)).wait_for()
    assert len(PAYLOADS) >= 80 and page.locator("#messages code").count() > 20
    assert page.evaluate(FIND_MARKUP) == []
    page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    assert page.evaluate("window.hit") is None
    assert [url for url in requests if not url.startswith((f"{server[0]}/", "data:image/svg+xml"))] == []
    page.close()


MARKDOWN = [  # text, selector, the texts of the elements that it must give
    ('```python title="a.py" {1,3}\nx = 1\n```\nafter', "pre code, p", ["x = 1\n", "after"]),
    ("`````\n```\ninner\n```\n`````\nafter", "pre code, p", ["```\ninner\n```\n", "after"]),
    ("1. one\n   ```sh\n   ls\n   ```\n2. two\n\nafter", "li pre code, ol + p", ["ls\n", "after"]),
    ("- a\n  - b\n    - c\n- d", "ul > li > ul > li > ul > li", ["c"]),
    ("~~gone~~ and **bold** and *slanted*", "s, strong, em", ["gone", "bold", "slanted"]),
    ("a\n\n---\n\nb", "hr + p", ["b"]),
    ("see https://example.org/a_b?c=d. and setup.py", "a", ["https://example.org/a_b?c=d"]),
    ("a | b\n:-|-:\n1 | **2**\n", "td.align-right strong, th.align-left", ["a", "2"]),
    ("the $x^2$ and \\(y\\), it costs $5 or $6", "math", ["x2", "y"]),
    ("$$\n\\frac{1}{2}\n$$", "div.formula mfrac mn", ["1", "2"]),
    (
        "$\\notacommand{x}$ and $\\href{javascript:hit=1}{x}$",
        "code",
        ["\\notacommand{x}", "\\href{javascript:hit=1}{x}"],
    ),
    ("# one\n## two", "h2, h3", ["one", "two"]),
    ("> a\n> > b", "blockquote blockquote p", ["b"]),
    ("![a cat](https://example.org/cat.png)", "a", ["image: a cat"]),
    ("```python\ndef f(): pass\n```", "span.hljs-keyword", ["def", "pass"]),
    ("```nonsense\n<b>&amp;</b>\n```", "code", ["<b>&amp;</b>\n"]),
    ("<b>not bold</b>", "p", ["<b>not bold</b>"]),
    # display formulas within a line, also next to each other, in lists, tables and emphasis
    ("so $$a$$ … $$b$$ end", "span.formula math[display=block], p", ["so a … b end", "a", "b"]),
    ("$$\\sum_a^b$$ $\\sum_a$", "math[display=block] mo[movablelimits=false]", ["∑"]),
    ("$$a$$ and $$b$$", "span.formula, code", ["a", "b"]),
    ("\\(a\\), \\[c\\] and $d$; `\\[e\\]`", "math, code", ["a", "c", "d", "\\[e\\]"]),
    ("- **$$x$$** and $$y$$\n- $z$", "li .formula, li math", ["x", "x", "y", "y", "z"]),
    ("$$x$$ and one more $$ here", "math, code", ["x"]),
    ("text\n$$\na\n$$\n$$b$$\nafter", "div.formula, p", ["text", "a", "b", "after"]),
    ("$$\n\na\n\n$$\n\n$$ b\n\nc $$", "div.formula", ["a"]),
    ("\\begin{align*}\na &= b\n\\end{align*}\nafter", "div.formula, p", ["a=b", "after"]),
    ("```tex\n$$a$$ \\[b\\]\n\\begin{align}\n```", "pre code, math", ["$$a$$ \\[b\\]\n\\begin{align}\n"]),
    # code and formulas with pipes in tables; what has no more cells than its table is left as it is
    ("a|b\n-|-\n`x|y`|`a \\| b`\n$|x|$|<sub>2</sub><br>z", "td", ["x|y", "a | b", "|x|", "2z"]),
    ("a|b|c\n-|-|-\n`x|y`|$5|$6\n`x|y`|z", "td", ["x|y", "$5", "$6", "`x", "y`", "z"]),
    ("- [ ] a\n- [x] **b**\n- [y] c", "li.task, li strong", ["☐ a", "☑ b", "b"]),
    ("a[^1], b[^n], [^0]\n\n[^1]: One *em*.\n[^n]: https://a.b", "sup", ["1", "n", "1", "n"]),
    ("a[^1]\n\n[^1]: One.\n  More.\n\nafter", "p.footnote + p", ["after"]),
    ("##Two\n###**Three**\n#tag\n#include <x>", "h3, h4, p", ["Two", "Three", "#tag\n#include <x>"]),
    ("##Two ##\n##Three# \n##f #g", "h3", ["Two", "Three#", "f #g"]),
    # tables in quotes and lists, one directly after another, and what is no table
    ("> a|b\n> -|-\n> `x|y`|z\n\n- | a | b |\n  |---|---|\n  | `v|w` | $|u|$ |", "td", ["x|y", "z", "v|w", "|u|"]),
    ("a|b\n-|-\nc|d\n# t\na|b|c\n-|-|-\n`x|y`|z|w", "td", ["c", "d", "x|y", "z", "w"]),
    ("~~~\na|b\n-|-\n`x|y`|z\n~~~", "pre code", ["a|b\n-|-\n`x|y`|z\n"]),
    ("\\[a\n\n\\[b\nc\n\\]", "div.formula, p", ["[a", "bc"]),
    ("a <!-- c --> b\n<!-- d\ne -->\n\n<!-- never closed", "p", ["a  b\n", "<!-- never closed"]),
    ("**「強調」**です。**重要:**次", "strong", ["「強調」", "重要:"]),
    ("```{.python .numberLines}\ndef f(): pass\n```", "span.hljs-keyword", ["def", "pass"]),
    ("- a\n\n  ```py\n  x|y\n  ```\n\n  - b\n\n    ~~~~\n    ```\n    ~~~~\n- c", "li li pre, ul > li", None),
    ("[" * 9000, "p", ["[" * 9000]),
    ("> " * 3000 + "x", "blockquote", None),
    ("x" * 100_001, "pre", ["x" * 100_001]),
]


def test_markdown_is_shown_as_it_is_meant(page):
    shown = page.evaluate(
        """async (cases) => {
            const { renderMarkdown } = await import("./markdown.js");
            return cases.map(([text, selector]) => {
                const box = document.createElement("div");
                box.append(renderMarkdown(text));
                return [...box.querySelectorAll(selector)].map((node) => node.textContent);
            });
        }""",
        [case[:2] for case in MARKDOWN],
    )
    for (text, _, expected), texts in zip(MARKDOWN, shown, strict=True):
        if expected is None:
            assert texts, text[:80]
        else:
            assert [value.strip("\n") for value in texts] == [value.strip("\n") for value in expected], text[:80]


TABLE = "| a | b |\n|---|---|\n"
LONG = [  # a beginning, what is repeated, an end
    *((TABLE, text, "") for text in ("\\[", "$$a ", "<!--", "[^a]: x\n", "`|", "\\[\n", "\\begin{align}\n", "<sub>")),
    *((TABLE, text, "") for text in ("| `a|b` | c |\n", "\\[a\n", "<!--\n\n", "\\(|", "`|``|```|", "$a |")),
    ("", "> \\[a\n", ""),
    ("x\n", "-|-\n-|-|-\n", ""),
    ("x\n", "a|b|c\n-|-\n", ""),
    ("", ">\n-|-\n", ""),
    ("", "- a|b\n  -|-\n", ""),
    ("", "`|`|a\n-|-\n\n", ""),
    ("##a", " ", "x"),
    ("##a", " #", "x"),
    ("x|y\n-", " ", "x"),
    ("x|y\n-|", " -", "x"),
    ("-", " ", "x|y"),
    ("[^a]:", " ", "x"),
    ("[", "\\(", "](x) \\)"),
    ("", "\\(" * 3, ""),
    ("```java\n", "a", "\n```"),
    ("```typescript\n", " \n", "x\n```"),
    ("", "```ini\n" + "a." * 9_000 + "\n```\n", ""),
]


def test_a_text_that_repeats_a_beginning_takes_no_quadratic_time(page):
    texts = [[start + text * (size // len(text)) + end for size in (9_500, 19_000)] for start, text, end in LONG]
    milliseconds = page.evaluate(
        """async (texts) => {
            const { renderMarkdown } = await import("./markdown.js");
            const measure = (text) => {
                const start = performance.now();
                renderMarkdown(text);
                return performance.now() - start;
            };
            return texts.map((pair) => {
                let half = Infinity, whole = Infinity; // of the quickest run: another may have been interrupted
                for (let run = 0; run < 3 && !(whole < 3 * half + 200); run++) {
                    half = Math.min(half, measure(pair[0]));
                    whole = Math.min(whole, measure(pair[1]));
                }
                return [half, whole];
            });
        }""",
        texts,
    )
    # Twice the text takes about twice as long; the milliseconds added are for what does not depend on its length.
    slow = [(form, times) for form, times in zip(LONG, milliseconds, strict=True) if times[1] >= 3 * times[0] + 200]
    assert slow == []


def test_conversations_are_renamed_found_exported_and_imported(page, browser, server):
    settings(page, max_tokens=4)
    for text in ("the quick fox", "lazy dog"):
        page.click("#new")
        send(page, text)
    page.get_by_role("button", name="Rename lazy dog").click()
    page.fill("#conversations input", "a sleeping <b>animal</b>")
    page.press("#conversations input", "Enter")
    page.locator("#title", has_text="a sleeping <b>animal</b>").wait_for()
    page.keyboard.press("Control+k")
    page.keyboard.type("QUICK")
    page.locator("#found", has_text="1 found").wait_for()
    page.locator("#conversations .open", has_text="the quick fox").click()
    page.locator(".message.user", has_text="the quick fox").wait_for()
    with page.expect_download() as download:
        page.click("#export")
    other = browser.new_context().new_page()
    other.goto(server[0])
    other.locator("#status", has_text="Connected").wait_for()
    for _ in range(2):  # a second import changes nothing
        other.set_input_files("#file", download.value.path())
        other.locator("#status", has_text="2 conversations imported").wait_for()
        other.evaluate("document.getElementById('status').textContent = ''")
    other.locator("#conversations .open", has_text="a sleeping <b>animal</b>").click()
    other.locator(".message.user", has_text="lazy dog").wait_for()
    assert other.locator("#conversations li").count() == 2 and other.locator(".message").count() == 2
    other.context.close()


def make_export(*conversations: dict) -> str:
    """Returns the text of an export of conversations with these messages."""
    records = [
        {"id": f"c{number}", "title": f"title {number}", "nodes": nodes} for number, nodes in enumerate(conversations)
    ]
    return json.dumps({"format": "fledgling.conversations", "version": 1, "conversations": records})


IMPORTS = [
    ("[1, 2", "x.json cannot be imported: it is not JSON"),
    ("", "cannot be imported: it is empty. Expected a file that Export made."),
    ('[{"mapping": {}}]', "cannot be imported: it is JSON of something else"),
    ("null", "cannot be imported: it is JSON of something else"),
    ('{"format": "fledgling.conversations", "version": 9}', "it is of version 9, and this page reads 1"),
    ('{"format": "fledgling.conversations", "version": 1}', "it has no list of conversations"),
    (
        '{"format": "fledgling.conversations", "version": 1, "conversations": [3, {"id": "a", "nodes": {}}]}',
        "1 conversation imported. 1 of the file is no conversation and was left out.",
    ),
    (  # another name of the role, a cycle of parents
        make_export(
            {"q": {"id": "q", "parent": "root", "rolx": "user", "text": "a"}},
            {name: {"id": name, "parent": to, "role": "user", "text": "a"} for name, to in (("a", "b"), ("b", "a"))},
        ),
        "0 conversations imported. 2 of the file are no conversations and were left out.",
    ),
    (
        make_export(
            {
                "q": {"id": "q", "parent": "root", "role": "user", "text": "why"},
                "r": {"id": "r", "parent": "q", "role": "assistant", "text": "only a text", "parts": []},
                "s": {"id": "s", "parent": "nowhere", "role": "user", "text": "lost"},
            }
        ),
        "1 conversation imported. 1 message without a valid role, id or parent left out.",
    ),
]
NUMBERS = [  # field, what is typed, what is used, the message
    ("max_tokens", "0", "1", "Maximum answer length, tokens: 0; expected a whole number from 1 to 100000; 1 is used."),
    ("max_tokens", "-5", "1", "-5; expected a whole number from 1"),
    ("max_tokens", "", "256", "empty; expected a whole number from 1 to 100000; 256 is used."),
    ("max_tokens", "e", "256", "no number; expected"),
    ("max_tokens", "2.5", "2", "2.5; expected a whole number"),
    ("top_k", "5000", "1000", "5000; expected a whole number from 0 to 1000; 1000 is used."),
    ("seed", "e", "", "no number; expected a whole number from 0 to 9007199254740991; none is used."),
    ("seed", "-1", "0", "-1; expected a whole number from 0"),
]


def clear_status(page) -> None:
    page.evaluate("document.getElementById('status').textContent = ''")


def test_a_file_that_is_no_export_is_named_with_its_problem(page):
    for text, message in IMPORTS:
        clear_status(page)
        page.set_input_files("#file", {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()})
        page.locator("#status", has_text=message).wait_for()
    page.locator("#conversations .open", has_text="title 0").click()
    page.locator(".message.assistant .body", has_text="only a text").wait_for()


@pytest.mark.parametrize("width", [390, 1000])
def test_a_table_of_many_columns_scrolls_and_breaks_no_word(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    heights = page.evaluate(
        """async () => {
            const { renderMarkdown } = await import("./markdown.js");
            const names = Array.from({ length: 11 }, (_, number) => `measurement${number}`);
            const row = (cells) => `| ${cells.join(" | ")} |\\n`;
            const body = document.createElement("div");
            body.className = "body";
            const message = document.createElement("div");
            message.className = "message";
            message.append(body);
            document.getElementById("messages").append(message);
            body.append(renderMarkdown(row(names) + row(names.map(() => "---")) + row(names.map(() => "yes"))));
            const box = body.querySelector(".scroll");
            const cells = [...body.querySelectorAll("th, td")].map((cell) => cell.getBoundingClientRect().height);
            return [Math.max(...cells), box.scrollWidth > box.clientWidth, document.documentElement.scrollWidth];
        }"""
    )
    assert heights[0] < 45 and heights[1] and heights[2] <= width


def test_a_number_that_cannot_be_used_is_named_with_what_is_used(page):
    page.click("#settings-button")
    for field, typed, used, message in NUMBERS:
        clear_status(page)
        page.locator(f"#{field}").select_text()
        page.keyboard.press("Delete")
        page.keyboard.type(typed)
        page.locator(f"#{field}").blur()
        page.locator("#status", has_text=message).wait_for()
        assert page.input_value(f"#{field}") == used


def test_an_api_key_that_cannot_be_sent_is_named_and_spaces_around_one_are_not_sent(page):
    page.click("#settings-button")
    for key, shown in (("clé", "a character that no key has (Settings, API key)"), (" key ", "Connected to tiny")):
        page.fill("#key", key)
        page.locator("#key").blur()
        page.locator("#status", has_text=shown).wait_for()


def test_settings_that_two_tabs_change_are_both_kept(page, server):
    other = page.context.new_page()
    other.goto(server[0])
    other.locator("#status", has_text="Connected").wait_for()
    settings(page, top_k=7)
    settings(other, max_tokens=9)
    page.reload()
    assert (page.input_value("#top_k"), page.input_value("#max_tokens")) == ("7", "9")


def test_two_answers_are_side_by_side_and_the_chosen_one_is_continued(page):
    settings(page, max_tokens=6)
    page.click("#settings-button")
    page.check("#compare")
    page.click("#settings-button")
    send(page, "fox")
    page.locator("#status", has_text="Answer complete.").wait_for()
    pair = page.locator(".pair .message")
    assert pair.count() == 2 and "temperature 0," in pair.last.inner_text()
    assert "chosen" in pair.first.get_attribute("class"), "the first setting is left"
    second = pair.last.locator(".body").inner_text()
    page.get_by_role("button", name="Continue with this one").click()
    page.locator(".pair .message.chosen .body", has_text=second).wait_for()
    page.click("#settings-button")
    page.uncheck("#compare")
    page.click("#settings-button")
    with page.expect_request("**/v1/chat/completions") as request:
        send(page, "dog")
    assert [m["role"] for m in request.value.post_data_json["messages"]] == ["user", "assistant", "user"]
    assert request.value.post_data_json["messages"][1]["content"].strip() == second.strip()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_phone_and_desktop_and_passes_axe(page, width, theme):
    page.set_viewport_size({"width": width, "height": 760})
    page.click("#settings-button")
    page.select_option("#theme", theme)
    send(page, "the quick fox jumps " * 2)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    axe = importlib.util.find_spec("axe_playwright_python")
    if axe is None:
        pytest.skip("axe-playwright-python is not installed")
    page.evaluate((Path(axe.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
    result = json.loads(page.evaluate("axe.run().then((results) => JSON.stringify(results.violations))"))
    serious = [(v["id"], v["nodes"][0]["html"]) for v in result if v["impact"] in ("serious", "critical")]
    assert serious == []


def test_a_conversation_that_outgrows_the_context_continues_without_its_oldest_turns(page):
    settings(page, max_tokens=24, seed=3)
    for number in range(5):  # the context is 96 tokens
        send(page, f"the quick brown fox jumps over the lazy dog {number}")
        page.locator("#status", has_text="Answer complete.").wait_for()
    assert page.locator(".message").count() == 10 and page.locator(".failed").count() == 0
    assert "dropped" in page.locator(".notice").last.inner_text()
    assert "of 96 tokens" in page.locator("#context-text").inner_text()


def test_two_checkpoints_are_compared_on_the_page(browser, random_engine, adder):
    worker = Worker(adder, 2, 4)
    with serving(random_engine, others=[Service(worker, adder.tokenizer, "second", 1)]) as (address, _):
        page = browser.new_page()
        page.goto(address)
        page.locator("#status", has_text="Connected to tiny, second").wait_for()
        page.click("#settings-button")
        page.check("#compare")
        assert page.locator("#model").input_value() == "tiny" and page.locator("#b_model").input_value() == "second"
        page.click("#settings-button")
        send(page, "fox")
        page.locator("#status", has_text="Answer complete.").wait_for()
        who = page.locator(".pair .who").all_inner_texts()
        assert "tiny, temperature 0.8" in who[0] and "second, temperature 0" in who[1]
        page.close()
    worker.close()
