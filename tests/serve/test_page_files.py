"""Every file of a page is served, and the bundled libraries have their versions and licences next to them."""

import json
import re

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from fledgling.serve.page_files import CONTENT_SECURITY_POLICY, PAGE, make_file_handler, page_paths
from fledgling.watch import app as watch_app

BUILD_FILES = {"vendor/bundle.js", "vendor/package.json"}  # from which a bundle is built; not served


def files_of(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - BUILD_FILES


def test_every_file_of_the_pages_is_served_and_no_other():
    assert set(page_paths().values()) == files_of(PAGE)
    served = {str(path.relative_to(watch_app.PAGE)) for name, path in watch_app.FILES.items() if name != "/page.css"}
    assert served == files_of(watch_app.PAGE)


def test_a_file_is_sent_from_memory_and_not_again_to_a_browser_that_has_it(tmp_path):
    path = tmp_path / "page.js"
    path.write_text("let x = 'é'", encoding="utf-8")
    with TestClient(Starlette(routes=[Route("/page.js", make_file_handler(path))])) as client:
        path.unlink()
        first = client.get("/page.js")
        assert first.text == "let x = 'é'" and first.headers["content-type"] == "text/javascript; charset=utf-8"
        again = client.get("/page.js", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        other = client.get("/page.js", headers={"If-None-Match": '"0"'})
        assert other.content == first.content


def test_a_module_imports_only_what_is_served():
    for folder in (PAGE, watch_app.PAGE):
        for path in folder.glob("*.js"):
            for name in re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8")):
                assert (folder / name).is_file(), f"{path.name} imports {name}"


def test_the_policy_lets_in_nothing_from_elsewhere_and_no_inline_code():
    rules = dict(rule.strip().split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert {rules[f"{kind}-src"] for kind in ("script", "style", "connect")} == {"'self'"}
    assert rules["require-trusted-types-for"] == "'script'" and rules["trusted-types"] == "dompurify"


@pytest.mark.parametrize(
    ("folder", "licences"), [(PAGE, "LICENSES.txt"), (watch_app.PAGE, "LICENSE.txt")], ids=["serve", "watch"]
)
def test_the_licence_of_every_bundled_library_is_there_with_its_version(folder, licences):
    text = (folder / "vendor" / licences).read_text(encoding="utf-8")
    for name, version in json.loads((folder / "vendor" / "package.json").read_text())["dependencies"].items():
        assert f"{name} {version}" in text, f"{name} {version} is not in {licences}"
