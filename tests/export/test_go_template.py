"""The template of a Modelfile for a layout that a model brought: what Ollama writes is what was trained."""

import json

import pytest

from fledgling.export.go_template import derive_go_template
from fledgling.export.modelfile import write_modelfile
from fledgling.text.template_layout import join_pieces, render_pieces
from tests.export.test_modelfile import CONFIG, TALK, parse_modelfile, render
from tests.text.chat_templates import END, TEMPLATES, tokenizer_of

FIXED = ["plain", "qwen3", "qwen3 thinking", "qwq"]  # layouts of fixed texts; the others leave system messages out


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_imported_layout_has_a_template_if_its_turns_are_fixed_texts(name, tmp_path):
    tokenizer = tokenizer_of(TEMPLATES[name])
    path = tmp_path / "m.Modelfile"
    notice = write_modelfile(path, tmp_path / "m.gguf", CONFIG, tokenizer)
    instructions = dict(parse_modelfile(path.read_text(encoding="utf-8")))
    assert ("TEMPLATE" in instructions) == (name in FIXED) and bool(notice) == (name not in FIXED)
    assert f"stop {json.dumps(END)}" in instructions["PARAMETER"] or END in path.read_text()
    for system in ("", "Be kind.") if name in FIXED else ():
        messages = [{"role": "system", "content": system}] * bool(system)
        messages += [{"role": role, "content": content} for role, content in TALK[:3]]
        expected = join_pieces(render_pieces(tokenizer, messages, asks=True))
        assert render(messages, template=instructions["TEMPLATE"]) == expected


@pytest.mark.parametrize("text", ["{{ '{{ x }}' }}", '{{ \'"""\' }}'])
def test_a_text_that_a_modelfile_cannot_have_is_not_written_into_it(text):
    assert derive_go_template(tokenizer_of(TEMPLATES["plain"] + text)) is None
