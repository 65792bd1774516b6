"""An exported directory goes to a hub in one commit: a small server on loopback that has the interface."""

import base64
import hashlib
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fledgling.cli import main
from fledgling.config import UserError
from fledgling.export.push import push_directory

TOKEN = "hf_secretsecretsecret"


class Hub(BaseHTTPRequestHandler):
    """Repositories, as far as an upload needs them; large files (weights) are sent apart, by their hash."""

    def log_message(self, *_):
        """Prints nothing."""

    def answer(self, value, code=200):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def read(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def is_allowed(self):
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.answer({"error": "no"}, 401)
        return False

    def do_GET(self):
        if self.is_allowed():
            self.answer({"id": "me/bird", "sha": "0" * 40, "siblings": [], "private": False})

    def do_PUT(self):
        body = self.read()
        if self.server.breaks:
            self.answer({"error": "quota"}, self.server.breaks)
            return
        self.server.objects[hashlib.sha256(body).hexdigest()] = body
        self.answer({})

    def do_POST(self):
        body, path = self.read(), self.path.split("?")[0]
        if not self.is_allowed():
            return
        url = f"http://127.0.0.1:{self.server.server_port}"
        if path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{url}/me/bird", "id": "me/bird"})
        elif path == "/api/validate-yaml":  # the front matter of README.md
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [{"path": one["path"]} for one in json.loads(body)["files"]]
            modes = [{**one, "uploadMode": "lfs" if "safetensors" in one["path"] else "regular"} for one in files]
            self.answer({"files": [{**one, "shouldIgnore": False, "oid": None} for one in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            action = [{**one, "actions": {"upload": {"href": f"{url}/put/{one['oid']}"}}} for one in objects]
            self.answer({"transfer": "basic", "objects": action})
        elif path.endswith("/commit/main"):
            self.server.commits.append([json.loads(line) for line in body.splitlines() if line.strip()])
            commit = {"commitUrl": f"{url}/me/bird/commit/{'1' * 40}", "commitOid": "1" * 40, "hookOutput": ""}
            self.answer({"success": True, **commit})
        else:
            print(f"unknown {path}")
            self.answer({"error": f"unknown {path}"}, 404)


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.objects, server.created, server.commits, server.breaks = {}, [], [], 0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "bird"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("a card")
    (folder / ".hidden").write_text("mine")
    (folder / "model.safetensors").write_bytes(b"w" * 5000)
    return folder


def test_one_commit_has_all_files_and_the_token_is_not_printed(hub, exported, capfd):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    assert main(["export", "push", str(exported), "me/bird", "--private", "--endpoint", endpoint, "--json"]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out) == {"url": f"{endpoint}/me/bird"} and TOKEN not in printed.out + printed.err
    assert hub.created[0]["name"] == "bird" and "private" in (hub.created[0].get("visibility"), *hub.created[0])
    (commit,) = hub.commits
    files = {line["value"]["path"]: line["value"] for line in commit if line["key"] in ("file", "lfsFile")}
    assert files.keys() == {"config.json", "README.md", "model.safetensors"}
    assert base64.b64decode(files["README.md"]["content"]) == b"a card"
    assert hub.objects[files["model.safetensors"]["oid"]] == b"w" * 5000


def test_a_wrong_token_a_missing_hub_and_no_export_are_one_line(hub, exported, tmp_path, monkeypatch):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="token is missing or wrong") as error:
        push_directory(exported, "me/bird", False, endpoint)
    assert "hf_wrong" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="OWNER/NAME"):
        push_directory(exported, "../bird", False, endpoint)
    with pytest.raises(UserError, match="no directory that `fledgling export` wrote"):
        push_directory(tmp_path / "none", "me/bird", False, endpoint)
    with pytest.raises(UserError, match="cannot be reached"):
        push_directory(exported, "me/bird", False, "http://127.0.0.1:9")
    assert not hub.commits


@pytest.mark.parametrize("code", [500, 507, 413])
def test_an_upload_that_breaks_is_one_line_and_commits_nothing(hub, exported, monkeypatch, code, capfd):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between huggingface_hub's retries
    monkeypatch.setattr(logging, "raiseExceptions", False)  # its logger keeps the standard error of an earlier test
    hub.breaks = code
    assert main(["export", "push", str(exported), "me/bird", "--endpoint", f"http://127.0.0.1:{hub.server_port}"]) == 1
    printed = capfd.readouterr().err
    assert (
        "Traceback" not in printed and TOKEN not in printed and printed.strip().splitlines()[-1].startswith("error: ")
    )
    assert not hub.commits


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:notaport", "hub.example", "ftp://hub.example", "http://", "http://a:0"]
)
def test_an_endpoint_that_is_no_address_is_one_line(exported, endpoint):
    with pytest.raises(UserError, match=r"--endpoint is .*expected an address"):
        push_directory(exported, "me/bird", False, endpoint)
