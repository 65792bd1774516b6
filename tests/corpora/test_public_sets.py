"""Public sets from a local imitation of the hub: pinned, resumed, checked, with clear errors."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fledgling.config import UserError
from fledgling.corpora import public_sets
from fledgling.corpora.public_sets import LOCK_FILE, PUBLIC_SETS, count_downloaded, fetch_public_set, get_public_set

COMMIT = "c" * 40
NAME = "fineweb-edu-100b"  # its table entry says "main", so the first fetch pins
REPOSITORY = PUBLIC_SETS[NAME].repository
FILES = {
    "shard_00000.parquet": bytes(range(256)) * 800,
    "shard_00001.parquet": b"second" * 5_000,
    "README.md": b"# not part of the set",
}


class Hub(ThreadingHTTPServer):
    """Imitates the hub's revision, tree and resolve endpoints, and breaks off as configured."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.requests = []  # (method, path, Range)
        self.cuts = []  # bytes after which the next responses break off
        self.ranges = True
        self.lfs = True
        self.served = {}  # file -> other bytes than those recorded

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def requested_ranges(self):
        return [header for _, path, header in self.requests if "/resolve/" in path]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def respond(self, body, status=200, headers=(), declared=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if declared is None else declared))
        for key, value in headers:
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        hub = self.server
        path = self.path.split("?")[0]
        hub.requests.append(("GET", path, self.headers.get("Range")))
        if path.startswith(f"/api/datasets/{REPOSITORY}/revision/"):
            self.respond(json.dumps({"id": REPOSITORY, "sha": COMMIT}).encode())
        elif path.startswith(f"/api/datasets/{REPOSITORY}/tree/{COMMIT}"):
            self.respond(json.dumps([self.describe(*item) for item in hub.files.items()]).encode())
        elif path.startswith(f"/datasets/{REPOSITORY}/resolve/{COMMIT}/"):
            self.resolve(path.rsplit("/", 1)[1])
        else:
            self.respond(b'{"error": "not found"}', 404)

    def describe(self, name, body):
        git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        entry = {"type": "file", "path": name, "size": len(body), "oid": git}
        if self.server.lfs and name.endswith(".parquet"):
            large = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
            entry["lfs"] = large
        return entry

    def resolve(self, name):
        hub = self.server
        body = hub.served.get(name, hub.files[name])
        start = 0
        header = self.headers.get("Range")
        if header and hub.ranges:
            start = int(header.removeprefix("bytes=").removesuffix("-"))
        rest = body[start:]
        cut = hub.cuts.pop(0) if hub.cuts else len(rest)
        headers = [("X-Repo-Commit", COMMIT), ("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")]
        self.respond(rest[:cut], 206 if start else 200, headers, declared=len(rest))
        if cut < len(rest):
            self.connection.close()


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(public_sets, "MAX_ATTEMPTS", 1)
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_set_is_fetched_and_pinned_once(hub, tmp_path):
    calls = []
    paths = fetch_public_set(NAME, tmp_path, endpoint=hub.url, progress=lambda *call: calls.append(call))
    assert [path.name for path in paths] == ["shard_00000.parquet", "shard_00001.parquet"]
    assert all(path.read_bytes() == FILES[path.name] and path.parent == tmp_path / NAME for path in paths)
    assert calls[-1] == ("shard_00001.parquet", 30_000, 30_000)
    lock = json.loads((tmp_path / LOCK_FILE).read_text())
    assert lock[NAME]["revision"] == COMMIT and set(lock[NAME]["files"]) == {path.name for path in paths}
    assert count_downloaded(NAME, tmp_path) == (2, 234_800)
    count = len(hub.requests)
    assert fetch_public_set(NAME, tmp_path, endpoint=hub.url) == paths
    assert len(hub.requests) == count  # the listing is not requested again


def test_the_first_files_can_be_fetched_alone(hub, tmp_path):
    assert len(fetch_public_set(NAME, tmp_path, max_files=1, endpoint=hub.url)) == 1
    assert count_downloaded(NAME, tmp_path)[0] == 1
    assert len(fetch_public_set(NAME, tmp_path, max_files=2, endpoint=hub.url)) == 2
    assert len(hub.requested_ranges()) == 2


def test_an_interrupted_download_continues_where_it_stopped(hub, tmp_path):
    hub.cuts = [70_000]
    with pytest.raises(UserError, match=r"70,000 of 204,800 bytes; fetch again"):
        fetch_public_set(NAME, tmp_path, max_files=1, endpoint=hub.url)
    assert not (tmp_path / NAME / "shard_00000.parquet").exists()
    [path] = fetch_public_set(NAME, tmp_path, max_files=1, endpoint=hub.url)
    assert path.read_bytes() == FILES[path.name]
    assert hub.requested_ranges() == [None, "bytes=70000-"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["shard_00000.parquet"]


def test_a_broken_connection_is_resumed_within_one_call(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(public_sets, "MAX_ATTEMPTS", 3)
    monkeypatch.setattr(public_sets.time, "sleep", lambda seconds: None)
    hub.cuts = [1_000, 2_000]
    [path] = fetch_public_set(NAME, tmp_path, max_files=1, endpoint=hub.url)
    assert path.read_bytes() == FILES[path.name]
    assert hub.requested_ranges() == [None, "bytes=1000-", "bytes=3000-"]


def test_a_server_without_ranges_sends_the_file_again(hub, tmp_path):
    hub.cuts, hub.ranges = [500], False
    with pytest.raises(UserError, match="broken off"):
        fetch_public_set(NAME, tmp_path, max_files=1, endpoint=hub.url)
    [path] = fetch_public_set(NAME, tmp_path, max_files=1, endpoint=hub.url)
    assert path.read_bytes() == FILES[path.name]


@pytest.mark.parametrize("lfs", [True, False])
def test_a_file_of_another_hash_is_removed_and_named(hub, tmp_path, lfs):
    hub.lfs = lfs  # sha256 of large-file storage, or git's own name of the bytes
    good = FILES["shard_00000.parquet"]
    hub.served = {"shard_00000.parquet": good[:100] + b"\xff" + good[101:]}
    with pytest.raises(UserError, match=r"shard_00000\.parquet: its bytes are not those the hub recorded"):
        fetch_public_set(NAME, tmp_path, max_files=1, endpoint=hub.url)
    assert list((tmp_path / NAME).iterdir()) == [] and count_downloaded(NAME, tmp_path) == (0, 0)
    hub.served = {}
    assert fetch_public_set(NAME, tmp_path, max_files=1, endpoint=hub.url)[0].read_bytes() == good


def test_an_existing_unchecked_file_is_checked_and_not_downloaded(hub, tmp_path):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "shard_00000.parquet").write_bytes(FILES["shard_00000.parquet"])
    fetch_public_set(NAME, tmp_path, max_files=1, endpoint=hub.url)
    assert hub.requested_ranges() == []


def test_a_truncated_file_on_the_disk_is_completed(hub, tmp_path):
    [path] = fetch_public_set(NAME, tmp_path, max_files=1, endpoint=hub.url)
    path.write_bytes(FILES[path.name][:1_000])
    assert count_downloaded(NAME, tmp_path) == (0, 0)
    fetch_public_set(NAME, tmp_path, max_files=1, endpoint=hub.url)
    assert path.read_bytes() == FILES[path.name]
    assert hub.requested_ranges() == [None, "bytes=1000-"]


def test_without_a_network_the_error_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None, raising=False)
    with pytest.raises(UserError, match=r"cannot reach http://127\.0\.0\.1:9 .*check the network") as caught:
        fetch_public_set(NAME, tmp_path, endpoint="http://127.0.0.1:9")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_missing_repository_is_named(hub, tmp_path):
    with pytest.raises(UserError, match=r"has no roneneldan/TinyStories at f54c09fd2331 \(status 404\)"):
        fetch_public_set("tinystories", tmp_path, endpoint=hub.url)


def test_mistakes_of_the_user_are_one_line(tmp_path):
    with pytest.raises(UserError, match='did you mean "climbmix"'):
        get_public_set("climbmx")
    with pytest.raises(UserError, match="expected at least 1"):
        fetch_public_set(NAME, tmp_path, max_files=0)
    (tmp_path / LOCK_FILE).write_text("{")
    with pytest.raises(UserError, match="corrupt; delete it"):
        count_downloaded(NAME, tmp_path)


def test_every_set_of_the_table_is_pinned_or_says_main():
    assert len(PUBLIC_SETS) >= 5
    for entry in PUBLIC_SETS.values():
        assert entry.revision == "main" or len(bytes.fromhex(entry.revision)) == 20
        assert entry.license and entry.pattern and entry.column in ("text", "messages", "question", "prompt")
