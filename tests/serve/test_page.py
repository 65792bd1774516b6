"""The page in a browser, against a server: what a user does, and that no text runs as script."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.serve.conftest import serving

RUN = "window.hit = (window.hit || 0) + 1"
# Texts that become script in a page that builds markup from them; each would set `hit`.
PAYLOADS = [
    f"<script>{RUN}</script>",
    f"<script type=module>{RUN}</script>",
    f"<img src=x onerror='{RUN}'>",
    f"<img src=x onerror={RUN.replace(' ', '/**/')}>",
    f"<svg onload='{RUN}'>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><animate onbegin='{RUN}' attributeName=x dur=1s>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<iframe src='javascript:parent.{RUN}'></iframe>",
    f"<body onload='{RUN}'>",
    f"<details open ontoggle='{RUN}'>x</details>",
    f"<input autofocus onfocus='{RUN}'>",
    f"<video><source onerror='{RUN}'></video>",
    f"<audio src=x onerror='{RUN}'></audio>",
    f"<object data='javascript:{RUN}'></object>",
    f"<embed src='javascript:{RUN}'>",
    f"<math><mi xlink:href='javascript:{RUN}'>x</mi></math>",
    f"<marquee onstart='{RUN}'>x</marquee>",
    f"<style>@import 'javascript:{RUN}';</style>",
    f"<link rel=stylesheet href='javascript:{RUN}'>",
    f"<meta http-equiv=refresh content='0;url=javascript:{RUN}'>",
    "<base href='https://evil.example/'>",
    f"<form action='javascript:{RUN}'><button autofocus>x</button></form>",
    f"<template><script>{RUN}</script></template>",
    f"</code></pre><script>{RUN}</script>",
    f"```html\n</code></pre><img src=x onerror='{RUN}'>\n```",
    f"`<img src=x onerror='{RUN}'>`",
    f"**<img src=x onerror='{RUN}'>**",
    f"# <img src=x onerror='{RUN}'>",
    f"> <img src=x onerror='{RUN}'>",
    f"- <img src=x onerror='{RUN}'>",
    f"1. <img src=x onerror='{RUN}'>",
    f"a | b\n-|-\n<img src=x onerror='{RUN}'> | y",
    f"[x](javascript:{RUN.replace(' ', '')})",
    "[x](JaVaScRiPt:window.hit=1)",
    "[x](java\tscript:window.hit=1)",
    "[x](data:text/html,<script>parent.hit=1</script>)",
    "[x](vbscript:window.hit=1)",
    "[x](//evil.example/x)",
    f'[x](https://ok.example/"onmouseover="{RUN.replace(" ", "")})',
    f"![x](x onerror={RUN.replace(' ', '')})",
    "<a href='javascript:window.hit=1'>x</a>",
    f"&lt;script&gt;{RUN}&lt;/script&gt;",
    f"\\u003cscript\\u003e{RUN}\\u003c/script\\u003e",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<ScRiPt >{RUN}</sCrIpT >",
    f"<script\x00>{RUN}</script>",
    f"<script/x>{RUN}</script>",
    f"<!--><script>{RUN}</script>-->",
    f"<![CDATA[<script>{RUN}</script>]]>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN.replace(' ', '')}>'>",
    f"{{{{constructor.constructor('{RUN}')()}}}}",
    f"${{{RUN}}}",
    f"';{RUN};'",
    f'";{RUN};"',
    f"</textarea><script>{RUN}</script>",
    f"</title><script>{RUN}</script>",
    f"</style><script>{RUN}</script>",
    f"<x contenteditable onblur='{RUN}'>x</x>",
    f"<div style='background:url(javascript:{RUN})'>x</div>",
    f"\u202e<script>{RUN}</script>",
    "__proto__",
]


ELEMENTS = "script, img, svg, iframe, object, embed, style, link, meta, base, form, input, video, audio, math"


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
    for _ in range(200):
        if server[1].load == 0:
            break
        page.wait_for_timeout(20)
    assert server[1].load == 0 and page.locator(".message").count() == 2


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


def test_no_text_runs_as_script(browser, server):
    """Every payload as text of user, model, tool, title and error: none runs, none creates an element or a handler."""
    node = "{id, parent, role, text, parts, tokens: [], reason: null, failed: role === 'assistant' ? text : undefined}"
    stored = f"""(payloads) => {{
        const all = payloads.map((text, number) => {{
            const make = (id, parent, role, parts) => ({node});
            const parts = [{{type: 'text', text}}, {{type: 'python', text}}, {{type: 'output', text}}];
            const nodes = {{q: make('q', 'root', 'user', []), a: make('a', 'q', 'assistant', parts)}};
            return {{id: String(number), title: text, nodes, chosen: {{root: 'q', q: 'a'}}}};
        }});
        localStorage.setItem('fledgling.conversations', JSON.stringify(all));
    }}"""
    page = browser.new_page()
    page.goto(server[0])
    page.evaluate(stored, PAYLOADS)
    page.reload()
    opened = page.locator("#conversations .open")
    opened.nth(len(PAYLOADS) - 1).wait_for()
    assert opened.count() == len(PAYLOADS) >= 60
    for number in range(len(PAYLOADS)):
        opened.nth(number).click()
        page.wait_for_function("title => document.getElementById('title').textContent === title", arg=PAYLOADS[number])
        assert page.locator(".message").count() == 2
        assert page.locator(f"#messages :is({ELEMENTS})").count() == 0, PAYLOADS[number]
        links = page.eval_on_selector_all("#messages a", "nodes => nodes.map((node) => node.protocol)")
        assert set(links) <= {"http:", "https:", "mailto:"}, PAYLOADS[number]
        handlers = "nodes => nodes.some((n) => [...n.attributes].some((a) => a.name.startsWith('on')))"
        assert not page.eval_on_selector_all("#messages *", handlers)
        assert page.evaluate("window.hit") is None, PAYLOADS[number]
    page.close()


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


def test_a_conversation_that_outgrows_the_context_goes_on_without_its_oldest_turns(page):
    settings(page, max_tokens=24, seed=3)
    for number in range(5):  # the context is 96 tokens
        send(page, f"the quick brown fox jumps over the lazy dog {number}")
        page.locator("#status", has_text="Answer complete.").wait_for()
    assert page.locator(".message").count() == 10 and page.locator(".failed").count() == 0
    assert "dropped" in page.locator(".notice").last.inner_text()
    assert "of 96 tokens" in page.locator("#context-text").inner_text()
