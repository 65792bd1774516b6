"""The page when answers fail: no fault keeps it from asking again, and no finished turn is lost."""

from __future__ import annotations

import json
import random
import re
import time

import pytest

from tests.serve.faulty_server import FaultyServer, make_stream

NONE = b'"top_logprobs": []'
STORED = """async () => {
    const request = indexedDB.open("fledgling", 1);
    await new Promise((resolve) => { request.onsuccess = resolve; });
    const all = request.result.transaction("messages").objectStore("messages").getAll();
    await new Promise((resolve) => { all.onsuccess = resolve; });
    request.result.close();
    return all.result.map((node) => node.text.trim());
}"""


@pytest.fixture
def faulty():
    server = FaultyServer()
    yield server
    server.stop()


@pytest.fixture
def context(browser):
    opened = browser.new_context(viewport={"width": 1000, "height": 700})
    yield opened
    opened.close()


@pytest.fixture
def page(context, faulty):
    return open_page(context, faulty)


def open_page(context, faulty):
    opened = context.new_page()
    opened.goto(faulty.address)
    opened.locator("#status", has_text="Connected to faulty").wait_for()
    return opened


def send(page, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")


def answered(page, text: str) -> None:
    """Sends a message and expects a complete answer to it: the last message on the page, and stored."""
    send(page, text)
    page.locator("#status", has_text="Answer complete.").wait_for()
    page.locator("#send").wait_for()
    assert "answer number" in page.locator(".message .body").last.inner_text()


def sent_texts(faulty) -> list[str]:
    return [message["content"] for message in faulty.bodies[-1]["messages"]]


@pytest.mark.parametrize("fault", [429, 503, 500, "empty", "html", ("cut", 0), ("cut", 900)])
def test_a_question_after_a_failed_answer_is_answered(page, faulty, fault):
    answered(page, "first")
    faulty.faults.append(fault)
    send(page, "second")
    page.locator(".failed").wait_for()
    page.locator("#send").wait_for()  # a message that is sent while the failed answer is stored is ignored
    answered(page, "third")
    texts = sent_texts(faulty)
    assert texts[0] == "first" and texts[-1] == "third"
    page.reload()
    page.locator(".message.user", has_text="second").wait_for()  # what was typed is still there


def test_the_speed_of_an_answer_that_arrives_at_once_is_counted_from_the_request(page):
    tops = [{"token": token, "logprob": logprob, "bytes": []} for token, logprob in (("word ", -0.5), ("other", -2.0))]
    others = json.dumps({"top_logprobs": tops})[1:-1].encode()

    def answer_late(route):
        time.sleep(0.3)
        route.fulfill(content_type="text/event-stream", body=make_stream("word " * 30).replace(NONE, others))

    page.route("**/v1/chat/completions", answer_late)
    send(page, "first")
    page.locator("#status", has_text="Answer complete.").wait_for()
    page.get_by_role("button", name="Probabilities").click()
    page.locator(".token").first.hover()
    assert page.locator("#tip").inner_text().splitlines() == ['"word "  60.7 %', '"other"  13.5 %'], (
        "the chosen token once"
    )
    count, seconds, rate = re.fullmatch(
        r"(\d+) tokens in ([\d.]+) s, (\d+) a second", page.locator(".speed").inner_text()
    ).groups()
    assert int(count) == 30 and float(seconds) >= 0.3 and int(rate) <= 100


@pytest.mark.parametrize("prose", ["it is three", ""])
def test_a_thought_is_shown_and_stored_apart_and_never_sent_back(page, faulty, prose):
    thought = "1 <b>and</b> 2 make"
    stream = make_stream(prose, thought)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=stream))
    send(page, "first")
    page.locator("#send").wait_for()  # the answer has ended, and is stored
    assert ("Answer complete." in page.locator("#status").inner_text()) == bool(prose)
    box = page.locator(".message.assistant details.thought")
    box.wait_for()
    assert box.locator("p").text_content().strip() == thought
    assert box.evaluate("box => box.open") == (not prose)
    assert page.locator(".failed").count() == (not prose)
    page.unroute("**/v1/chat/completions")
    page.reload()
    page.locator(".message.assistant details.thought").wait_for()
    answered(page, "second")
    assert page.locator("details.thought").count() == 1
    messages = faulty.bodies[-1]["messages"]
    assert [message["content"].strip() for message in messages] == (["first", prose, "second"] if prose else ["second"])


def test_an_error_is_readable_on_the_narrowest_phone(page, faulty):
    page.set_viewport_size({"width": 320, "height": 640})
    answered(page, "first")
    faulty.faults.append(429)
    send(page, "second")
    page.locator(".failed").wait_for()
    boxes = {name: page.locator(name).bounding_box() for name in ("#status", "#context", "#form")}
    assert boxes["#status"]["width"] > 200 and boxes["#status"]["height"] < 60, "words, not a letter a line"
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 320 for box in boxes.values())
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_a_stop_before_the_first_token_leaves_a_question_that_can_be_answered(page, faulty):
    faulty.faults.append(("hang", 0))
    send(page, "first")
    faulty.wait_until_faults_are_taken()
    page.locator("#stop").click()
    page.locator(".message.user").wait_for()
    assert page.locator(".message.assistant").count() == 0
    page.get_by_role("button", name="Answer the last message").click()
    page.locator("#status", has_text="Answer complete.").wait_for()
    assert sent_texts(faulty) == ["first"]
    answered(page, "second")


def test_a_message_sent_right_after_a_stop_is_kept(page, faulty):
    answered(page, "first")
    faulty.faults.append(("hang", 0))
    send(page, "second")
    page.locator("#stop").wait_for()
    faulty.wait_until_faults_are_taken()
    page.evaluate("""() => {
        document.getElementById("stop").click();
        document.getElementById("message").value = "third";
        document.getElementById("form").requestSubmit();
    }""")
    page.locator("#status", has_text="Answer complete.").wait_for()
    page.reload()
    page.locator(".message.user", has_text="third").wait_for()
    assert page.locator(".message").count() == 5  # second has no answer


def test_two_tabs_lose_no_conversation(context, faulty):
    first, second = open_page(context, faulty), open_page(context, faulty)
    answered(first, "of the first tab")
    answered(second, "of the second tab")
    answered(first, "of the first tab again")
    third = open_page(context, faulty)
    third.locator("#conversations .open").nth(1).wait_for()
    assert sorted(third.locator("#conversations .open").all_inner_texts()) == ["of the first tab", "of the second tab"]
    assert third.locator(".message").count() == 4
    answered(third, "of the third tab")  # in the conversation that the first tab shows
    first.locator(".message").nth(5).wait_for()  # question and answer of the third tab
    answered(first, "and on")
    third.locator(".message.user", has_text="and on").wait_for()
    assert first.locator(".message").count() == 8


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_a_server_that_comes_back_with_other_models_is_found(page, faulty, names):
    faulty.models = ["a", "b"]
    page.reload()
    page.locator("#status", has_text="Connected to a, b").wait_for()
    answered(page, "first")
    faulty.models = names
    send(page, "second")
    page.locator(".failed", has_text="no such model").wait_for()
    page.wait_for_function("(count) => document.getElementById('model').options.length === count", arg=len(names))
    page.wait_for_function("() => document.getElementById('model').value === 'one'")
    answered(page, "third")


def test_a_message_that_is_sent_before_the_database_is_open_is_stored(page):
    page.evaluate("""async () => {
        const store = await import("./store.js?another"); // a module of its own, whose database is not open
        const { addMessage, newConversation } = await import("./conversation.js");
        const conversation = newConversation();
        const opening = store.openStore();
        await store.saveMessages(conversation, [addMessage(conversation, null, "user", "early")]);
        await opening;
    }""")
    assert page.evaluate(STORED) == ["early"]


def test_a_rename_in_one_tab_is_kept_when_another_continues(context, faulty):
    first = open_page(context, faulty)
    answered(first, "one")
    second = open_page(context, faulty)
    first.get_by_role("button", name="Rename one").click()
    first.fill("#conversations input", "a better title")
    first.press("#conversations input", "Enter")
    second.locator("#title", has_text="a better title").wait_for()
    answered(second, "two")
    first.locator(".message.user", has_text="two").wait_for()
    first.reload()
    first.locator("#title", has_text="a better title").wait_for()


@pytest.mark.parametrize("cause", ["an answer ends", "another tab saves"])
def test_a_title_that_is_typed_is_kept_when_the_list_changes(context, faulty, cause):
    first = open_page(context, faulty)
    answered(first, "one")
    first.click("#new")
    answered(first, "two")
    second = open_page(context, faulty)
    faulty.faults.append(("hang", 900))
    send(first if cause == "an answer ends" else second, "three")
    faulty.wait_until_faults_are_taken()
    first.get_by_role("button", name="Rename two").click()
    first.keyboard.type("a better")
    first.locator("#conversations li", has_text="one").evaluate("item => { item.className = 'old'; }")
    faulty.released.set()
    first.locator("#conversations .old").wait_for(state="detached")  # the list has been filled again
    assert first.locator("#conversations input").count() == 1
    first.keyboard.type(" title")  # in the field, which is still the one that takes keys
    first.keyboard.press("Enter")
    first.locator("#title", has_text="a better title").wait_for()
    second.locator("#conversations .open", has_text="a better title").wait_for()
    first.locator("#conversations .open", has_text="a better title").wait_for()
    assert first.locator("#conversations li").count() == 2 and first.locator("#conversations input").count() == 0


def test_an_answer_cut_after_any_byte_can_be_followed_by_another(page):
    """Every byte of an answer as the last, through the page's own modules: the next request is one that is accepted."""
    stream = make_stream("ünï *x* words").decode()
    states = page.evaluate(
        """async (stream) => {
            const { addMessage, newConversation, requestMessages } = await import("./conversation.js");
            const { generateAnswer } = await import("./answer.js");
            const bytes = new TextEncoder().encode(stream);
            const states = [];
            for (const broken of [false, true]) for (let end = 0; end <= bytes.length; end++) {
                const body = new ReadableStream({ start(controller) {
                    if (end) controller.enqueue(bytes.slice(0, end));
                    broken ? controller.error(new TypeError("network error")) : controller.close();
                } });
                window.fetch = async () => new Response(body);
                const conversation = newConversation();
                const question = addMessage(conversation, null, "user", "one");
                const node = addMessage(conversation, question.id, "assistant", "");
                const signal = new AbortController().signal;
                const settings = { fields: {}, system: "", key: "" };
                await generateAnswer({ conversation, question, node, ...settings, signal, changed() {} });
                const next = addMessage(conversation, node.id, "user", "two");
                const { messages } = requestMessages(conversation, next, "");
                states.push([node.text, node.failed, messages.map(({ role }) => role).join(" ")]);
            }
            return states;
        }""",
        stream,
    )
    assert len(states) == 2 * (len(stream.encode()) + 1)
    for text, failed, roles in states:
        assert roles == ("user assistant user" if text else "user")
        assert failed or text == "ünï *x* words "
    assert states[len(states) // 2 - 1][1] is None
    assert {text for text, _, _ in states} == {"", "ünï ", "ünï *x* ", "ünï *x* words "}


def test_stored_settings_and_conversations_of_any_type_do_not_stop_the_page(page, faulty):
    page.evaluate("""() => {
        localStorage.setItem("fledgling.settings", JSON.stringify({ temperature: "hot", top_k: -4, max_tokens: 1e9,
            seed: {}, system: 7, theme: "<b>", top_p: null, calculator: "yes", min_p: [], model: "gone" }));
        localStorage.setItem("fledgling.conversations", JSON.stringify([null, 3, {}, { id: "a", nodes: 4 }, { id: "b",
            title: 5, nodes: { x: null, y: { id: "y", parent: "root", role: "assistant", text: "answer first" },
            z: { id: "z", parent: "z", role: "user", text: "its own parent" } }, chosen: { root: 12 } }]));
    }""")
    page.reload()
    page.locator("#conversations .open").wait_for()
    answered(page, "one")
    assert sent_texts(faulty) == ["one"]


def test_half_a_character_and_many_parts_are_sent_in_a_form_that_is_accepted(page, faulty):
    messages = page.evaluate("""async () => {
        const { addMessage, newConversation, requestMessages } = await import("./conversation.js");
        const conversation = newConversation();
        let last = null;
        for (let turn = 0; turn < 400; turn++) {
            last = addMessage(conversation, last?.id, "user", `half \\ud800 ${turn}`);
            last = addMessage(conversation, last.id, "assistant", "");
            for (let part = 0; part < 2 * turn; part++)
                last.parts.push({ type: part % 2 ? "text" : "python", text: "x" });
            if (!turn) last.parts.push({ type: "text", text: "x".repeat(2e6) });
        }
        last = addMessage(conversation, last.id, "user", "last");
        const { messages, omitted } = requestMessages(conversation, last, "be brief");
        const response = await fetch("v1/chat/completions", { method: "POST", body: JSON.stringify({ messages }) });
        return { status: response.status, count: messages.length, omitted };
    }""")
    assert messages == {"status": 200, "count": 512, "omitted": 145}


@pytest.mark.parametrize("steps", [8, 200])
def test_random_faults_never_stop_the_page_and_lose_no_finished_turn(context, faulty, steps):
    draw = random.Random(steps)
    pages = [open_page(context, faulty), open_page(context, faulty)]
    finished: set[str] = set()
    kinds = ["status", "cut", "cut", "slow", "empty", "restart", "reload", "stop", "fine", "new"]
    for step in range(steps):
        page, kind = draw.choice(pages), draw.choice(kinds)
        byte = draw.randrange(1200)  # of about 2,000
        faults = {"status": draw.choice([429, 500, 503]), "empty": "empty", "fine": None}
        faulty.faults.append(faults.get(kind, ("cut" if kind == "cut" else "hang", byte)))
        if kind == "new":
            page.locator("#new").click()
            faulty.faults[-1] = None
        send(page, f"step {step}")
        if kind in ("slow", "restart", "reload", "stop"):
            page.wait_for_function("() => document.getElementById('send').hidden")
            faulty.wait_until_faults_are_taken()
            if kind == "restart":
                faulty.stop()
            elif kind == "reload":
                page.reload()
            elif kind == "stop":
                page.keyboard.press("Escape")
            faulty.release()
        if kind == "restart":
            page.locator("#send").wait_for()
            faulty.start()
        page.locator("#send").wait_for()
        page.locator("#status:not(:text('Generating'))").wait_for()
        if "Answer complete." in page.locator("#status").inner_text():
            finished.add(faulty.sent[-1].replace("*", "").replace("`", ""))
    for page in pages:
        faulty.faults.clear()
        answered(page, "at last")
    stored = [text.replace("*", "").replace("`", "") for text in pages[0].evaluate(STORED)]
    assert len(finished) >= steps // 12 and finished <= set(stored)
    assert {f"step {step}" for step in range(steps)} <= set(stored)


@pytest.mark.parametrize(
    "failure", ["indexedDB.open = () => { throw new Error('no'); }", "delete window.BroadcastChannel"]
)
def test_the_page_works_without_a_database_or_a_channel_between_tabs(context, faulty, failure):
    context.add_init_script(failure)
    page = context.new_page()
    page.goto(faulty.address)
    page.locator("#send").wait_for()
    answered(page, "first")
    page.click("#new")
    answered(page, "second")
    page.locator("#conversations .open", has_text="first").click()
    page.locator(".message.user", has_text="first").wait_for()
    answered(page, "third")
    assert sent_texts(faulty)[0] == "first" and page.locator("#conversations .open").count() == 2
