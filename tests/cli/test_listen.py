"""Where a server listens: who may reach it without a key, and values that no header can have."""

import socket

import pytest

from fledgling.cli.listen import check_port, check_sites, choose_api_key, is_loopback, listen
from fledgling.config import UserError


def test_other_machines_need_a_key(monkeypatch):
    monkeypatch.delenv("FLEDGLING_API_KEY", raising=False)
    assert is_loopback("::1") and not is_loopback("0.0.0.0")
    assert choose_api_key("127.0.0.1", None) is None and choose_api_key("127.0.0.1", "12345678") == "12345678"
    with pytest.raises(UserError, match="reachable from outside"):
        choose_api_key("0.0.0.0", None)
    monkeypatch.setenv("FLEDGLING_API_KEY", "from-the-environment")
    assert choose_api_key("0.0.0.0", None) == "from-the-environment"


@pytest.mark.parametrize("key", ["short", "with space", "ümlaut-12345"])
def test_a_key_that_a_header_cannot_hold_is_rejected(key):
    with pytest.raises(UserError, match="at least 8 visible ASCII"):
        choose_api_key("127.0.0.1", key)


@pytest.mark.parametrize(
    ("hosts", "origins"), [(["http://a"], []), (["a:80"], []), ([], ["example.org"]), ([], ["https://*"])]
)
def test_a_host_has_no_scheme_and_an_origin_has_one(hosts, origins):
    check_sites(["chat.example.org", "[::1]"], ["https://example.org:8443"])
    with pytest.raises(UserError, match="expected"):
        check_sites(hosts, origins)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_number_that_is_no_port_is_rejected(port):
    check_port(0)
    with pytest.raises(UserError, match="expected 0 to 65535"):
        check_port(port)


def test_a_port_that_is_taken_is_one_line():
    listener, url = listen("127.0.0.1", 0)
    with listener:
        port = listener.getsockname()[1]
        assert url == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)), pytest.raises(UserError, match=f"127.0.0.1:{port}"):
            listen("127.0.0.1", port)
