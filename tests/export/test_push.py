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
from fledgling.export.push import push_export

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
        if not self.is_allowed():
            return
        files = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in self.server.remote]
        model = {"id": "me/bird", "sha": "0" * 40, "siblings": [], "private": False}
        self.answer(files if "/tree/" in self.path else model)

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
            if not self.server.may_create:
                self.answer({"error": "no"}, 403)
                return
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
    server.objects, server.created, server.commits, server.breaks, server.remote = {}, [], [], 0, []
    server.may_create = True
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
    assert (
        json.loads(printed.out) == {"url": f"{endpoint}/me/bird", "deleted": []}
        and TOKEN not in printed.out + printed.err
    )
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
        push_export(exported, "me/bird", False, endpoint)
    assert "hf_wrong" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="OWNER/NAME"):
        push_export(exported, "../bird", False, endpoint)
    with pytest.raises(UserError, match="nothing that `fledgling export` wrote"):
        push_export(tmp_path / "none", "me/bird", False, endpoint)
    with pytest.raises(UserError, match="cannot be reached"):
        push_export(exported, "me/bird", False, "http://127.0.0.1:9")
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
        push_export(exported, "me/bird", False, endpoint)


def test_what_an_earlier_model_left_is_deleted_in_the_same_commit_and_named(hub, exported, capfd):
    hub.remote = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "adapter_config.json",
        "README.md",
    ]
    hub.remote += ["old.q8_0.gguf", "photo.png", "onnx/config.json", "handler.py", "model.safetensors"]
    assert main(["export", "push", str(exported), "me/bird", "--endpoint", f"http://127.0.0.1:{hub.server_port}"]) == 0
    deleted = sorted(line["value"]["path"] for line in hub.commits[0] if line["key"] == "deletedFile")
    assert deleted == ["adapter_config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert f"deleted in me/bird, of an earlier model: {', '.join(deleted)}" in capfd.readouterr().err


def test_a_file_is_pushed_by_itself_and_deletes_nothing(hub, tmp_path, capfd):
    for name in ("bird.gguf", "bird.Modelfile", "secret.txt", "other.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    hub.remote = ["model.safetensors", "config.json"]
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    assert main(["export", "push", str(tmp_path / "bird.gguf"), "me/bird", "--endpoint", endpoint]) == 0
    assert {line["value"]["path"] for line in hub.commits[0] if line["key"] != "header"} == {
        "bird.gguf",
        "bird.Modelfile",
    }


@pytest.mark.parametrize("name", ["secret.txt", "rows.jsonl", "data/rows.jsonl", "tokens.json", "x.bin"])
def test_a_directory_with_files_that_no_export_writes_is_rejected(hub, exported, name):
    (exported / name).parent.mkdir(exist_ok=True)
    (exported / name).write_text("mine")
    with pytest.raises(UserError, match=f"has files that no export writes, .*: {name.partition('/')[0]}; "):
        push_export(exported, "me/bird", False, f"http://127.0.0.1:{hub.server_port}")
    assert not hub.created


@pytest.mark.parametrize(
    "name", ["bird", "me/bird..x", "me/bird.git", "me/a--b", "me/b\u00e9", "a/b/c", "me/-x", "me/x."]
)
def test_a_repository_that_no_hub_takes_is_named_before_anything_is_sent(hub, exported, name):
    with pytest.raises(UserError, match="expected OWNER/NAME"):
        push_export(exported, name, False, f"http://127.0.0.1:{hub.server_port}")


def test_a_token_that_is_none_and_offline_mode_are_named(hub, exported, monkeypatch):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setenv("HF_TOKEN", "hf_\u00e9")
    with pytest.raises(UserError, match="characters that no token has"):
        push_export(exported, "me/bird", False, endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        push_export(exported, "me/bird", False, endpoint)


def test_a_token_that_may_make_no_repository_pushes_into_one_that_is_there(hub, exported):
    hub.may_create = False
    push_export(exported, "me/bird", False, f"http://127.0.0.1:{hub.server_port}")
    assert len(hub.commits) == 1
