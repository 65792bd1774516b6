"""The tools of MCP servers over HTTP, and on the page: offered, asked for, called, and answered from."""

from __future__ import annotations

import json

import pytest

from tests.serve.conftest import serving
from tests.serve.faulty_server import make_stream
from tests.serve.test_app import call

JSON = {"content_type": "application/json"}


class MadeUpTools:
    """Two tools; no process."""

    allowed = frozenset({"echo"})

    def __init__(self):
        self.calls = []

    def describe(self):
        return [
            {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
            for name in ("add", "echo")
        ]

    def call(self, name, arguments):
        self.calls.append((name, arguments))
        return f"<img src=x onerror='window.hit = 1'>{name} {sorted(arguments)}"


@pytest.fixture
def tools():
    return MadeUpTools()


@pytest.fixture
def address(random_engine, tools):
    with serving(random_engine, mcp=tools) as (address, _):
        yield address


def test_tools_are_listed_with_whether_they_are_asked_for_and_called(address, tools):
    listed = call(address, "/mcp/tools")[1]["tools"]
    assert [(tool["function"]["name"], tool["allowed"]) for tool in listed] == [("add", False), ("echo", True)]
    status, reply, _ = call(address, "/mcp/call", b'{"name": "add", "arguments": {"b": 1, "a": 2}}', **JSON)
    assert status == 200 and reply["result"].endswith("add ['a', 'b']") and tools.calls == [("add", {"b": 1, "a": 2})]


def test_a_body_that_is_no_call_and_a_form_of_another_site_are_rejected(address, tools):
    for body in (b"{}", b'{"name": 1, "arguments": {}}', b'{"name": "add"}', b'{"name": "add", "arguments": []}', b"["):
        assert call(address, "/mcp/call", body, **JSON)[0] == 400, body
    assert call(address, "/mcp/call", b'{"name": "add", "arguments": {}}', content_type="text/plain")[0] == 415
    assert tools.calls == []


def test_without_servers_there_is_no_tool(server):
    assert call(server[0], "/mcp/tools")[1] == {"tools": []}
    reply = call(server[0], "/mcp/call", b'{"name": "add", "arguments": {}}', **JSON)[1]
    assert "without --mcp" in reply["result"]


def make_call_stream(name: str, arguments: str, reason: str = "tool_calls", count: int = 0) -> bytes:
    """An answer of `count` tokens that ends with a call, whose arguments arrive in two pieces."""
    middle = len(arguments) // 2
    deltas = [
        {"tool_calls": [{"index": 0, "id": "c", "function": {"name": name, "arguments": arguments[:middle]}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": arguments[middle:]}}]},
    ]
    choices = [{"index": 0, "delta": delta, "finish_reason": None, "logprobs": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": reason, "logprobs": None})
    lines = [f"data: {json.dumps({'id': 'x', 'choices': [choice]})}\n\n" for choice in choices]
    usage = {"prompt_tokens": 1, "completion_tokens": count}
    lines += [f"data: {json.dumps({'id': 'x', 'choices': [], 'usage': usage})}\n\n"] if count else []
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


def open_page(browser, address, answer):
    """The connected page, whose requests for answers `answer(route)` serves."""
    page = browser.new_page()
    page.route("**/v1/chat/completions", answer)
    page.goto(address)
    page.locator("#status", has_text="Connected").wait_for()
    return page


def test_the_page_asks_before_a_call_and_continues_with_its_result(browser, address, tools):
    answers = [
        make_call_stream("add", '{"a": 2}'), make_stream("done"),
        make_call_stream("add", '{"a": 3}'), make_stream("denied"),
        make_call_stream("echo", "{}"), make_stream("unasked"),
    ]  # fmt: skip
    bodies = []

    def answer(route):
        bodies.append(json.loads(route.request.post_data))
        route.fulfill(body=answers[len(bodies) - 1], content_type="text/event-stream")

    page = open_page(browser, address, answer)

    def ask(button=None):
        page.fill("#message", "question")
        page.press("#message", "Enter")
        if button:
            page.locator("#ask").wait_for()
            assert page.locator("#ask-name").inner_text() == "add" and tools.calls == calls
            page.click(button)
        page.locator("#status", has_text="Answer complete.").wait_for()
        page.locator("#send").wait_for()

    calls = []
    ask("#ask-once")
    assert tools.calls == [("add", {"a": 2})]
    assert [tool["function"]["name"] for tool in bodies[0]["tools"]] == ["add", "echo"]
    parts = bodies[1]["messages"][-1]["parts"]
    assert [part["type"] for part in parts] == ["python", "output"]
    assert json.loads(parts[0]["text"]) == {"name": "add", "arguments": {"a": 2}} and "add ['a']" in parts[1]["text"]
    assert page.locator(".message summary").last.inner_text() == "Called add"
    assert "done" in page.locator(".message .body").last.inner_text()
    calls = list(tools.calls)
    ask("#ask-deny")
    assert page.locator(".message summary").last.inner_text() == "Called add, error: the user denied the call"
    assert tools.calls == calls and "denied" in bodies[3]["messages"][-1]["parts"][1]["text"]
    ask()
    assert tools.calls[-1] == ("echo", {})
    assert page.evaluate("window.hit") is None and page.locator(".message img").count() == 0
    page.close()


def test_the_dialog_shows_all_arguments_with_hidden_characters_escaped(browser, address, tools):
    arguments = {"a": "x" * 20_000 + "\u202etxt.exe\u0085\u200d\U000e0041", "end": "rm -rf"}
    answers = iter([make_call_stream("add", json.dumps(arguments)), make_stream("done")])
    page = open_page(
        browser, address, lambda route: route.fulfill(body=next(answers), content_type="text/event-stream")
    )
    page.fill("#message", "question")
    page.press("#message", "Enter")
    page.locator("#ask").wait_for()
    shown = page.locator("#ask-arguments").text_content()
    assert shown.endswith('x\\u{202e}txt.exe\\u{85}\u200d\\u{e0041}",\n  "end": "rm -rf"\n}') and len(shown) > 20_000
    box = page.locator("#ask-arguments").evaluate("(box) => [box.scrollHeight > box.clientHeight, box.clientHeight]")
    assert box[0] and box[1] < 400, "the box scrolls, and the buttons stay in view"
    page.locator("#ask-deny").wait_for()
    page.click("#ask-once")
    page.locator("#status", has_text="Answer complete.").wait_for()
    assert tools.calls == [("add", arguments)]
    page.close()


def test_tokens_are_those_of_all_requests_and_a_call_that_was_cut_is_not_made(browser, address, tools):
    answers = [
        make_call_stream("echo", "{}", count=24),
        make_stream("it is done"),
        make_call_stream("echo", "{", "length", 9),
    ]
    bodies = []

    def answer(route):
        bodies.append(route.request.post_data)
        route.fulfill(body=answers[len(bodies) - 1], content_type="text/event-stream")

    page = open_page(browser, address, answer)
    for count in (2, 3):
        page.fill("#message", "question")
        page.press("#message", "Enter")
        page.locator(".message.assistant .speed").nth(count - 2).wait_for()
        page.locator("#send").wait_for()
        assert len(bodies) == count and tools.calls == [("echo", {})]
    assert page.locator(".speed").first.inner_text().startswith("27 tokens in ")
    assert page.locator(".speed").last.inner_text().startswith("9 tokens in ")
    assert "cut: the maximum length" in page.locator(".message.assistant .tools").last.inner_text()
    page.close()


class LongTools(MadeUpTools):
    """Tools whose descriptions alone fill the context."""

    def describe(self):
        tools = super().describe()
        return [tool | {"function": tool["function"] | {"description": "x" * 900}} for tool in tools]


def test_tools_that_do_not_fit_are_left_out_and_the_question_is_answered(browser, random_engine):
    with serving(random_engine, mcp=LongTools()) as (address, _):
        page = browser.new_page()
        page.goto(address)
        page.locator("#status", has_text="Connected").wait_for()
        page.fill("#message", "question")
        page.press("#message", "Enter")
        page.locator("#status", has_text="Answer complete.").wait_for()
        notice = page.locator(".message .notice").last.inner_text()
        assert notice == "The tools do not fit into the model's context: it answered without them."
        page.close()
