"""The layout of conversations comes in with a directory: template, ends of answers, how its makers sample."""

import json

import pytest

from fledgling.config import UserError
from fledgling.export import write_hf
from fledgling.export.read_hf import read_hf
from fledgling.export.read_layout import read_layout
from fledgling.text.conversation import render_prompt
from fledgling.text.tokenizer import Tokenizer
from tests.text.test_template_layout import CHATML, CONTROLS


@pytest.fixture
def directory(make, tokenizer, tmp_path):
    document = json.loads(json.dumps(tokenizer.tokenizer_json))
    for token, name in zip(document["added_tokens"], CONTROLS, strict=False):
        token["content"] = name
    model = make("llama", depth=1)
    folder = write_hf.write_hf(tmp_path / "model", model.config, model.state_dict(), Tokenizer(document), "card")
    write(folder, "tokenizer_config.json", chat_template=CHATML, eos_token={"content": "</s>"}, bos_token="<s>")
    end = Tokenizer(document).special_tokens["<|im_end|>"]
    write(folder, "generation_config.json", eos_token_id=[end], temperature=0.6, top_p=0.95, top_k=-4, do_sample=True)
    return folder


def write(folder, name, **contents):
    (folder / name).write_text(json.dumps(contents))


def test_a_template_with_its_ends_and_its_sampling_comes_in_and_leaves(directory, tmp_path):
    imported = read_hf(directory)
    tokenizer = imported.tokenizer
    assert tokenizer.assistant_end == tokenizer.special_tokens["<|im_end|>"]
    assert tokenizer.end_tokens >= {tokenizer.special_tokens[name] for name in ("<|im_end|>", "</s>")}
    assert tokenizer.sampling_defaults == {"temperature": 0.6, "top_p": 0.95}
    prompt = {"messages": [{"role": "user", "content": "the fox"}]}
    assert tokenizer.decode(render_prompt(tokenizer, prompt)).endswith("<|im_start|>assistant\n")
    write_hf.write_hf(tmp_path / "again", imported.config, imported.state, tokenizer, "card")
    again = read_hf(tmp_path / "again").tokenizer
    assert render_prompt(again, prompt) == render_prompt(tokenizer, prompt)
    assert again.sampling_defaults == tokenizer.sampling_defaults
    assert "fledgling" not in json.loads((tmp_path / "again" / "tokenizer.json").read_text())


def test_a_template_is_read_from_its_own_file_or_by_its_name(directory):
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert read_layout(directory)["chat_template"] == "{{ messages[0].content }}"
    (directory / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    write(directory, "tokenizer_config.json", chat_template=named)
    assert read_layout(directory)["chat_template"] == CHATML
    write(directory, "tokenizer_config.json", chat_template={"tool_use": "x", "default": CHATML})
    assert read_layout(directory)["chat_template"] == CHATML
    write(directory, "tokenizer_config.json", chat_template=named[:1])
    with pytest.raises(UserError, match='names tool_use, and no "default"'):
        read_layout(directory)


def test_names_and_tokens_of_other_files_are_those_of_transformers(directory):
    (directory / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    size = read_hf(directory).tokenizer.vocab_size
    token = {"content": "<|extra|>", "special": True, "lstrip": False}
    template = (
        "{{ pad_token }}{{ image_token }}" + CHATML + "{% if tools is none and documents is none %}none{% endif %}"
    )
    keys = {"extra_special_tokens": {"image_token": "<|sep|>"}, "pad_token": "</s>", "chat_template": template}
    write(directory, "tokenizer_config.json", added_tokens_decoder={str(size - 1): token}, **keys)
    with pytest.raises(UserError, match=f"other tokens of id {size - 1}"):
        read_hf(directory)
    document = json.loads((directory / "tokenizer.json").read_text())
    dropped = document["added_tokens"].pop()
    (directory / "tokenizer.json").write_text(json.dumps(document))
    write(directory, "tokenizer_config.json", added_tokens_decoder={str(dropped["id"]): token}, **keys)
    tokenizer = read_hf(directory).tokenizer
    assert tokenizer.special_tokens["<|extra|>"] == dropped["id"] and "</s>" in tokenizer.chat_layout["eos_token"]
    text = tokenizer.decode(render_prompt(tokenizer, {"messages": [{"role": "user", "content": "the fox"}]}))
    assert text.startswith("</s><|sep|><|im_start|>user") and text.endswith("assistant\nnone")


def test_a_model_without_any_layout_says_so(directory):
    write(directory, "tokenizer_config.json")
    with pytest.raises(UserError, match=r"no chat template .*chat_template\.jinja"):
        render_prompt(read_hf(directory).tokenizer, {"messages": [{"role": "user", "content": "the fox"}]})


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% if %}", "cannot be read"),
        (7, "expected text"),
        ("x" * (1 << 21), "at most 1,048,576"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(directory, template, word):
    write(directory, "tokenizer_config.json", chat_template=template, eos_token="</s>")
    with pytest.raises(UserError, match=word) as error:
        read_hf(directory)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
