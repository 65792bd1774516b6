"""The watcher's routes: behind host and key, bounded, and a request reaches a run that lives."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from fledgling.record.run_lock import hold_lock
from fledgling.record.run_requests import take_actions
from fledgling.watch.app import FILES, WatchAccess, WatchedRuns, choose_names, make_watch_app
from tests.report.synthetic_run import make_run

KEY = "a key of enough length"


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", stages=("pretrain",), scale=0.02)


def fetch(app, method: str, path: str, **options):
    import anyio

    async def send():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return anyio.run(send)


def test_runs_that_share_a_title_have_the_names_of_their_directories_or_paths():
    runs = [("quickstart", Path(path)) for path in ("a/run", "b/run", "other")]
    assert choose_names([*runs, ("mine", Path("mine"))]) == ["a/run", "b/run", "other", "mine"]
    assert choose_names(runs[:1]) == ["quickstart"]


def test_state_is_sent_once_and_then_what_is_new(run):
    app = make_watch_app(WatchedRuns([run, run.parent / "later"]), WatchAccess(None, ("localhost",)))
    first = fetch(app, "GET", "/api/runs").json()
    assert [len(each["stages"]) for each in first["runs"]] == [1, 0] and first["machine"]["cores"] >= 1
    second = fetch(app, "GET", f"/api/runs?since={first['cursor']}").json()
    assert [each["stages"] for each in second["runs"]] == [[], []]
    for cursor in ("x", "0:1:2", first["cursor"] + ":3", "1" * 5000, first["cursor"].split(":")[0] + ":a:b"):
        assert len(fetch(app, "GET", f"/api/runs?since={cursor}").json()["runs"][0]["stages"]) == 1


def test_a_request_reaches_a_run_that_lives_and_no_other(run):
    app = make_watch_app(WatchedRuns([run]), WatchAccess(None, ("localhost",)))

    def ask(body, **headers):
        return fetch(app, "POST", "/api/requests", json=body, headers=headers)

    assert ask({"run": 0, "action": "stop"}).status_code == 409  # it does not run
    assert take_actions(run) == frozenset()
    with hold_lock(run, "test"):
        assert ask({"run": 0, "action": "stop"}).json() == {"requested": "stop"}
        assert take_actions(run) == {"stop"} and take_actions(run) == frozenset()
        for body, status in (({"run": 1, "action": "stop"}, 404), ({"run": 0, "action": "../x"}, 400), ({}, 400),
                             ([], 400), ({"run": 0, "action": ["stop"]}, 400), ({"run": "0" * 99, "action": "x"}, 404),
                             ({"x": "x" * 2000}, 413)):  # fmt: skip
            assert ask(body).status_code == status, body
        assert ask({"run": 0, "action": "stop"}, **{"content-type": "text/plain"}).status_code == 415
    assert take_actions(run) == frozenset()
    assert fetch(app, "GET", "/api/batch?run=0").json() == {"batch": None}
    assert fetch(app, "GET", "/api/batch?run=x").status_code == 404


def test_only_the_page_and_health_need_no_key(run):
    app = make_watch_app(WatchedRuns([run]), WatchAccess(KEY, None))
    assert all(fetch(app, "GET", path).status_code == 200 for path in (*FILES, "/health"))
    policy = fetch(app, "GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    routes = [("GET", "/api/runs"), ("GET", "/api/batch"), ("POST", "/api/requests"), ("GET", "/x"), ("GET", "/../x")]
    for method, path in routes:
        assert fetch(app, method, path).status_code == 401
        wrong = fetch(app, method, path, headers={"Authorization": "Bearer x"})
        assert wrong.status_code == 401 and "key" in wrong.json()["error"]["message"], "which the page shows"
    assert fetch(app, "GET", "/api/runs", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    local = make_watch_app(WatchedRuns([run]), WatchAccess(None, ("localhost",)))
    assert fetch(local, "GET", "/api/runs", headers={"Host": "evil.example"}).status_code == 421
