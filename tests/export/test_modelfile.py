"""The Modelfile next to a GGUF file: its grammar, its template in the layout of conversations, its stops."""

import pytest

from fledgling.config import ModelConfig, UserError
from fledgling.export.modelfile import TEMPLATE, parse_modelfile, write_modelfile
from fledgling.text.conversation import render_prompt

CONFIG = ModelConfig(330, 1, 16, 2)


def test_the_file_names_the_model_its_context_and_where_answers_end(tokenizer, tmp_path):
    path = write_modelfile(tmp_path / "m.Modelfile", tmp_path / "m.gguf", CONFIG, tokenizer)
    instructions = parse_modelfile(path.read_text(encoding="utf-8"))
    assert instructions[0] == ("FROM", "./m.gguf") and ("PARAMETER", f"num_ctx {CONFIG.context}") in instructions
    assert dict(instructions)["TEMPLATE"] == TEMPLATE
    assert ("PARAMETER", 'stop "<|assistant_end|>"') in instructions


def render(system, messages):
    """What TEMPLATE gives by the rules of Go's text/template: {{- trims white space; range, if, assignment."""
    text = "<|bos|>"
    for role, content in messages:
        if role == "user":
            text += "<|user_start|>" + (f"{system}\n\n" if system else "") + content + "<|user_end|>"
            system = ""
        elif role == "assistant":
            text += f"<|assistant_start|>{content}<|assistant_end|>"
    return text + "<|assistant_start|>"


@pytest.mark.parametrize("system", ["", "Be kind."])
def test_the_template_is_the_layout_that_the_model_was_trained_in(tokenizer, system):
    turns = [("user", "the fox"), ("assistant", "jumps"), ("user", "again")]
    messages = [{"role": "system", "content": system}] * bool(system)
    messages += [{"role": role, "content": content} for role, content in turns]
    ids = render_prompt(tokenizer, {"messages": messages})
    assert tokenizer.decode(ids) == render(system, turns)
    literal = [piece.partition("}}")[2].rstrip("\n") for piece in ("}}" + TEMPLATE).split("{{")]
    names = ["bos", "user_start", "user_end", "assistant_start", "assistant_end", "assistant_start"]
    assert [piece for piece in literal if piece] == [f"<|{name}|>" for name in names], "what is written besides values"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("FROM ./m.gguf\nTEMPLTE x\n", "line 2: expected one of FROM"),
        ('TEMPLATE """x\n"""\n', "no FROM"),
        ("FROM ./m.gguf\n\n# a comment\nPARAMETER stopp x\n", "line 4: stopp is no parameter"),
        ("FROM\n", "line 1: expected"),
        ('FROM ./m.gguf\nTEMPLATE """x\n', "line 2: expected"),
    ],
)
def test_what_is_no_modelfile_is_named_with_its_line(text, problem):
    with pytest.raises(UserError, match=problem):
        parse_modelfile(text)
