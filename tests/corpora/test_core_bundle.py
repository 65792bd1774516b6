"""The CORE bundle from a local server: resumed, pinned, unpacked in one rename, its files checked."""

import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fledgling.cli import main
from fledgling.config import UserError
from fledgling.corpora import core_bundle
from fledgling.corpora.public_sets import LOCK_FILE, compute_hub_hash
from fledgling.tasks.core import read_core_tasks
from tests import made_up_core


def archive(folder, *more: tuple[str, str]) -> bytes:
    """A made-up bundle as the published archive is laid out."""
    root = made_up_core.write_core_bundle(folder) / "core"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                zipped.write(path, f"eval_bundle/{path.relative_to(root).as_posix()}")
        for name, text in more:
            zipped.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.body)))
            self.end_headers()

        def do_GET(self):
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.server.starts.append(start)
            rest = self.server.body[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: self.server.cuts.pop(0)] if self.server.cuts else rest)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.starts, server.cuts = b"", [], []
    server.url = f"http://127.0.0.1:{server.server_port}/eval_bundle.zip"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_it_is_unpacked_where_eval_core_reads_it(server, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    outside = "eval_bundle/eval_data/../../../out"
    server.body = archive(tmp_path / "a", ("eval_bundle/openai-gpt2.csv", "no part"), (outside, "x"))
    server.cuts = [500]
    folder, changed = core_bundle.fetch_core_bundle(tmp_path / "data", server.url)
    assert server.starts == [0, 500] and folder == tmp_path / "data" / "core"
    assert len(read_core_tasks(tmp_path / "data")) == len(made_up_core.BASELINES)
    assert len(changed) == len(core_bundle.TASK_FILE_HASHES), "all differ from the published ones"
    assert not list(tmp_path.rglob("out")) and not list(folder.rglob("*.csv.*"))
    assert sorted(path.name for path in folder.iterdir()) == ["core.yaml", "eval_data", "eval_meta_data.csv"]
    core_bundle.fetch_core_bundle(tmp_path / "data", server.url)
    assert len(server.starts) == 2, "an existing bundle is not fetched again"


def test_an_archive_other_than_the_pinned_one_is_rejected(server, tmp_path):
    server.body = archive(tmp_path / "a")
    folder, _ = core_bundle.fetch_core_bundle(tmp_path / "data", server.url)
    (folder / "core.yaml").rename(tmp_path / "away")
    server.body = archive(tmp_path / "b", ("eval_bundle/eval_data/x", "changed"))
    with pytest.raises(UserError, match="not those the hub recorded"):
        core_bundle.fetch_core_bundle(tmp_path / "data", server.url)


def test_an_archive_without_a_bundle_is_rejected(server, tmp_path):
    server.body = b"<html>moved</html>"
    with pytest.raises(UserError, match="corrupt, or no archive"):
        core_bundle.fetch_core_bundle(tmp_path, server.url)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("other/readme", "x")
    server.body = buffer.getvalue()
    with pytest.raises(UserError, match=r"no eval_bundle/core\.yaml"):
        core_bundle.fetch_core_bundle(tmp_path / "other", server.url)
    assert not (tmp_path / "other" / "core").exists()
    server.shutdown()
    with pytest.raises(UserError, match="cannot reach"):
        core_bundle.fetch_core_bundle(tmp_path / "third", "http://127.0.0.1:9/eval_bundle.zip")


def test_changed_files_are_named_and_published_ones_are_not(tmp_path, monkeypatch):
    root = made_up_core.write_core_bundle(tmp_path) / "core"
    digest = compute_hub_hash(root / "eval_data" / "facts" / "choice.jsonl", "sha256").removeprefix("sha256:")
    monkeypatch.setattr(core_bundle, "TASK_FILE_HASHES", {"facts/choice": digest[:16], "facts/letters": "0" * 16})
    assert core_bundle.find_changed_files(root) == ["facts/letters.jsonl"]


def test_the_command_fetches_it_and_info_lists_it(server, tmp_path, capsys):
    server.body = archive(tmp_path / "a")
    assert main(["data", "fetch", "core", "--data-dir", str(tmp_path / "data"), "--endpoint", server.url]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "data" / "core") and "not the published files" in shown.err
    assert main(["data", "info", "--data-dir", str(tmp_path / "data"), "--json"]) == 0
    (entry,) = [entry for entry in json.loads(capsys.readouterr().out)["sets"] if entry["name"] == "core"]
    assert entry["files"] == 6 and entry["revision"].startswith("sha256:")
    assert (tmp_path / "data" / LOCK_FILE).is_file()
