"""The watcher's page in a browser: a run that continues, stops, and receives requests."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import threading
from pathlib import Path

import pytest

from fledgling.record import Recorder
from fledgling.record.run_lock import hold_lock
from fledgling.record.run_requests import take_actions
from fledgling.serve.connections import ConnectionLimits
from fledgling.serve.server import Server
from fledgling.watch.app import WatchAccess, WatchedRuns, make_watch_app
from tests.report.synthetic_run import make_run
from tests.serve.conftest import browser  # noqa: F401 - a fixture

COLLECT_STATUSES = """() => {
    const status = document.getElementById("status");
    window.statuses = [];
    new MutationObserver(() => statuses.push(status.textContent)).observe(status, { childList: true });
}"""
HOSTILE = "<img src=x onerror='window.hit=1'>"


def ask(page, button, action: str) -> None:
    """Clicks a button that sends a request to the run; returns when it has arrived and the page has shown that."""
    page.evaluate(COLLECT_STATUSES)  # the next reading of the run replaces what the page shows
    with page.expect_response(lambda response: response.request.method == "POST"):
        button.click()
    page.wait_for_function("action => statuses.some((s) => s.startsWith('Sent to run: ' + action))", arg=action)


@contextlib.contextmanager
def serving(runs, port: int = 0):
    listener = socket.create_server(("127.0.0.1", port))
    server = Server(make_watch_app(WatchedRuns(runs), WatchAccess(None, ("127.0.0.1",))), ConnectionLimits())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listener.close()


def violations(page) -> list:
    axe = importlib.util.find_spec("axe_playwright_python")
    if axe is None:
        return []
    page.evaluate((Path(axe.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
    result = json.loads(page.evaluate("axe.run().then((results) => JSON.stringify(results.violations))"))
    return [(v["id"], v["nodes"][0]["html"]) for v in result if v["impact"] in ("serious", "critical")]


def test_the_page_shows_new_steps_sends_requests_and_reconnects(browser, tmp_path):  # noqa: F811
    run = make_run(tmp_path / "run", stages=("pretrain", "midtrain"), scale=0.05)
    (run / "midtrain" / "done.json").unlink()
    other = make_run(tmp_path / "other", stages=("pretrain", "midtrain"), scale=0.04)
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    with serving([run, other]) as port, hold_lock(run, "test"):
        page.clock.install()
        page.goto(f"http://127.0.0.1:{port}")
        first = page.locator(".run").first
        first.locator(".state", has_text="running").wait_for()
        assert page.locator(".run").nth(1).locator("button:disabled").count() == 3
        assert page.locator(".chart:visible canvas").count() >= 4
        loss = page.locator(".chart [role=img]").first
        assert all(f"{name}, smoothed" in loss.get_attribute("aria-label") for name in ("run", "other"))
        assert page.locator("#evals th").all_inner_texts() == ["", "run", "other"]
        assert all("quickstart" not in page.locator(f"#{part}").inner_text() for part in ("pairs", "samples", "runs"))
        assert "\t$" in page.locator("#pairs").inner_text(), "with their units"
        with Recorder(run / "midtrain", "midtrain", 9, quiet=True) as recorder:
            recorder.log_metrics(99, loss=1.25, tokens_per_second=4321.0, seconds=0.1)
            recorder.log_sample(99, HOSTILE, HOSTILE)
        page.clock.run_for(2100)  # it asks every two seconds
        first.locator("dd", has_text="99").wait_for()
        page.locator(".sample", has_text=HOSTILE).first.wait_for()
        ask(page, first.get_by_role("button", name="Sample now"), "sample")
        assert take_actions(run) == {"sample"}
        ask(page, first.get_by_role("button", name="Stop"), "stop")
        page.get_by_role("button", name="Show the next step").click()
        page.locator("#batch", has_text="run, comes after the run's next step").wait_for()
        assert take_actions(run) == {"stop", "batch"}
        ask(page, first.get_by_role("button", name="Stop"), "stop")
        assert take_actions(run) == {"stop"}
        page.get_by_role("button", name="pretrain").click()
        page.locator("button[aria-pressed=true]", has_text="pretrain").wait_for()
        for width, theme in ((1200, "light"), (390, "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.select_option("#theme", theme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert violations(page) == []
    page.clock.run_for(2100)
    page.locator("#status.lost").wait_for()  # the watcher is away
    with serving([run, other], port):
        page.clock.run_for(2100)
        page.locator("#status:not(.lost)").wait_for()
        first.locator(".state", has_text="not running").wait_for()
    assert problems == [] and page.evaluate("window.hit") is None
    page.close()


def test_a_mean_of_losses_begins_with_them_and_a_line_that_has_ended_has_no_value(browser, tmp_path):  # noqa: F811
    runs = [make_run(tmp_path / name, stages=("pretrain",), scale=scale) for name, scale in (("a", 0.02), ("b", 0.01))]
    page = browser.new_page()
    with serving(runs) as port:
        page.goto(f"http://127.0.0.1:{port}")
        chart = page.locator(".chart").first
        cells = chart.locator(".u-over").bounding_box()
        page.mouse.move(cells["x"] + 0.98 * cells["width"], cells["y"] + 9)
        chart.locator(".u-value", has_text="10").wait_for()  # the step; run b has five
        values = chart.locator(".u-value").all_inner_texts()
        assert [value == "–" for value in values] == [False, False, False, True, True], values
        values = page.evaluate("""import("/charts.js").then(({ smooth, findNearest, formatMemory }) => [
            smooth([null, 7, 6, null], .9), findNearest([1, 2, undefined, undefined], 3),
            findNearest([undefined, 2, undefined, null, 5], 2), findNearest([undefined, 1], 0),
            formatMemory(193e6), formatMemory(42e9)])""")
    assert values == [[None, 7, pytest.approx(12.3 / 1.9), pytest.approx(12.3 / 1.9)], 3, 1, 0, "184.1 MiB", "39.1 GiB"]
    page.close()
