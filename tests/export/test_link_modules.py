"""Modules are joined in the order of their imports, and a form that is not known is an error."""

import pytest

from fledgling.export.html import read_modules
from fledgling.export.link_modules import link_modules
from fledgling.serve.page_files import PAGE

A = 'import { b as other, C } from "./b.js";\nexport const a = () => other() + C;\n'
B = "const hidden = 1;\nexport function b() { return hidden; }\nexport { hidden as C };\n"


def test_a_module_sees_what_it_imports_and_nothing_else_of_the_others():
    script = link_modules("a.js", {"a.js": A, "b.js": B, "unused.js": "export default 1"})
    assert script.index("module_b =") < script.index("module_a =") and "unused" not in script
    assert "const { b: other, C: C } = module_b;" in script
    assert "return { b: b, C: hidden };" in script and "return { a: a };" in script


def test_the_pages_modules_are_joined_once_each_without_a_tag_or_an_import_left():
    modules = read_modules(PAGE)
    script = link_modules("page.js", modules)
    assert all(script.count(f"const module_{name} =") == 1 for name in ("api", "generation", "vendor_markdown_bundle"))
    assert "<script" not in script.lower() and "</script" not in script.lower() and "<!--" not in script
    assert "v1/chat/completions" not in script  # the server's api.js


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('import x from "./b.js";', "no import or export of a form"),
        ('import * as x from "./b.js";', "no import or export of a form"),
        ('const x = await import("./b.js");', "no import or export of a form"),
        ("export default 1;", "no import or export of a form"),
        ("export let x = 1;", "no import or export of a form"),
        ('import { x } from "./b.js";', "b.js does not export x"),
        ('import { x } from "./c.js";', "not found"),
        ('import { x } from "./a.js";', "in a circle"),
    ],
)
def test_another_form_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        link_modules("a.js", {"a.js": text + "\n", "b.js": B})
