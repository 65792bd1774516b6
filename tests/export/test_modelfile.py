"""The Modelfile next to a GGUF file: its grammar, its template in the layout of conversations, its stops."""

import json
import re

import pytest

from fledgling.config import ModelConfig
from fledgling.export.modelfile import TEMPLATE, write_modelfile
from fledgling.text.conversation import render_prompt
from fledgling.text.tokenizer import Tokenizer

CONFIG = ModelConfig(330, 1, 16, 2)
INSTRUCTIONS = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE")
PARAMETERS = ("num_ctx", "num_predict", "stop", "temperature", "top_k", "top_p", "min_p", "seed", "repeat_penalty")


def parse_modelfile(text: str) -> list[tuple[str, str]]:
    """Returns the instructions of a Modelfile with their values; raises ValueError for anything else."""
    found, at = [], 0
    pattern = re.compile(r'(\w+)[ \t]+(?:"""(.*?)"""|((?!""")[^\n]*))[ \t]*(?:\n|\Z)', re.DOTALL)
    while rest := text[at:]:
        if blank := re.match(r"(?:[ \t]*(?:#[^\n]*)?\n)+", rest):
            at += blank.end()
            continue
        match = pattern.match(rest)
        line = text.count("\n", 0, at) + 1
        if not match or match[1].upper() not in INSTRUCTIONS:
            raise ValueError(f"Modelfile, line {line}: expected one of {', '.join(INSTRUCTIONS)} with a value")
        name, value = match[1].upper(), match[2] if match[2] is not None else match[3].strip()
        if name == "PARAMETER" and value.split(" ")[0] not in PARAMETERS:
            raise ValueError(
                f"Modelfile, line {line}: {value.split(' ')[0]} is no parameter; {', '.join(PARAMETERS)} are"
            )
        if not value:
            raise ValueError(f"Modelfile, line {line}: {name} has no value")
        found.append((name, value))
        at += match.end()
    if not any(name == "FROM" for name, _ in found):
        raise ValueError("Modelfile: no FROM names the model")
    return found


def test_the_file_names_the_model_its_context_and_where_answers_end(tokenizer, tmp_path):
    path = tmp_path / "m.Modelfile"
    assert not write_modelfile(path, tmp_path / "m.gguf", CONFIG, tokenizer)
    instructions = parse_modelfile(path.read_text(encoding="utf-8"))
    assert instructions[0] == ("FROM", "./m.gguf") and ("PARAMETER", f"num_ctx {CONFIG.context}") in instructions
    assert dict(instructions)["TEMPLATE"] == TEMPLATE
    assert ("PARAMETER", 'stop "<|assistant_end|>"') in instructions


LITERAL = r"""`[^`]*`|"(?:[^"\\]|\\.)*\""""  # of Go


def split_actions(text):
    """Text and actions of a template of Go's text/template, with the white space that {{- and -}} remove."""
    pieces, at = [], 0
    for match in re.finditer(rf"\{{\{{(-? ?)((?:{LITERAL}|[^`\"])*?)( -|)\}}\}}", text):
        before = text[at : match.start()]
        trims = bool(pieces) and pieces[-1][2]
        before = before.lstrip() if trims else before
        pieces.append((False, before.rstrip() if match[1].startswith("-") else before, False))
        pieces.append((True, match[2].strip(), bool(match[3])))
        at = match.end()
    return [*pieces, (False, text[at:], False)]


class GoTemplate:
    """As much of Go's text/template as a Modelfile uses: range, if, else if, variables, eq, not, fields, literals."""

    def __init__(self, text, data):
        self.pieces, self.root, self.names, self.out = split_actions(text), data, {}, ""

    def value(self, word, dot):
        if word.startswith("`"):
            return word[1:-1]
        if word.startswith('"'):
            return json.loads(word)
        if word in ("true", "false"):
            return word == "true"
        first, *fields = word.split(".")
        found = dot if first == "" else self.root if first == "$" else self.names[first]
        for name in filter(None, fields):
            found = found[name]
        return found

    def evaluate(self, text, dot):
        words = re.findall(rf"{LITERAL}|\S+", text)
        if words[0] == "eq":
            return self.value(words[1], dot) == self.value(words[2], dot)
        return not self.value(words[1], dot) if words[0] == "not" else self.value(words[0], dot)

    def run(self, at, dot, shows):
        """Runs from a piece to the `end` or `else` of this level; returns its index."""
        while at < len(self.pieces):
            is_action, text, _ = self.pieces[at]
            word = text.split(" ")[0]
            if not is_action:
                self.out += text if shows else ""
            elif word in ("end", "else"):
                return at
            elif word == "range":
                items = self.evaluate(text[6:], dot) or [] if shows else []
                end = self.run(at + 1, None, False)
                for item in items:
                    self.run(at + 1, item, True)
                at = end
            elif word == "if":
                at = self.choose(at, text[3:], dot, shows)
            elif match := re.fullmatch(r"(\$\w+) :?= (.*)", text):
                if shows:
                    self.names[match[1]] = self.evaluate(match[2], dot)
            else:
                self.out += str(self.evaluate(text, dot)) if shows else ""
            at += 1
        return at

    def choose(self, at, condition, dot, shows):
        taken = False
        while True:
            holds = shows and not taken and (condition is None or bool(self.evaluate(condition, dot)))
            taken = taken or holds
            at = self.run(at + 1, dot, holds)
            text = self.pieces[at][1]
            if text == "end":
                return at
            condition = text[8:] if text.startswith("else if ") else None


def render(messages, tools=(), template=TEMPLATE):
    """What Ollama makes of a history: messages of a role joined, calls and tools as Go prints them."""
    system = "\n\n".join(each["content"] for each in messages if each["role"] == "system")
    given = []
    for each in messages:
        calls = [{"Function": {"Name": c["name"], "Arguments": compact(c["arguments"])}} for c in each.get("calls", ())]
        given.append({"Role": each["role"], "Content": each["content"], "ToolCalls": calls})
    go = GoTemplate(template, {"System": system, "Messages": given, "Tools": [{"Function": compact(t)} for t in tools]})
    assert go.run(0, go.root, True) == len(go.pieces)
    return go.out


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


TALK = [("user", "the fox"), ("assistant", "jumps"), ("user", "again"), ("assistant", "over")]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("system", ["", "Be kind."])
def test_the_template_is_the_layout_that_the_model_was_trained_in(tokenizer, system, length):
    messages = [{"role": "system", "content": system}] * bool(system)
    messages += [{"role": role, "content": content} for role, content in TALK[:length]]
    assert render(messages) == tokenizer.decode(render_prompt(tokenizer, {"messages": messages}))


def test_calls_of_tools_and_their_results_are_in_the_layout(tokenizer):
    tool = {"name": "add", "description": "adds", "parameters": {"type": "object"}}
    call = {"name": "add", "arguments": {"a": 2}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "2+3?"},
        {"role": "assistant", "content": "", "calls": [call]},
        {"role": "tool", "content": "5"},
    ]
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    plain[2]["tool_calls"] = [{"function": {"name": "add", "arguments": compact(call["arguments"])}}]
    expected = tokenizer.decode(render_prompt(tokenizer, {"messages": plain, "tools": [tool]}))
    described = json.dumps(tool)
    assert described in expected and render(messages, [tool]) == expected.replace(described, compact(tool))


def test_the_interpreter_of_templates_trims_and_chooses_as_go_does():
    data = {"A": True, "B": ["x", "y"], "C": ""}
    text = (
        'a \n{{- if .C }}1{{ else if .A }}2 {{- else }}3{{ end }} \n {{- range .B }}{{ . }};{{ end -}} \n z{{ "\\n" }}'
    )
    go = GoTemplate(text, data)
    go.run(0, data, True)
    assert go.out == "a2x;y;z\n"


def test_a_model_that_continues_texts_has_a_modelfile_without_a_template(tokenizer, tmp_path):
    kept = [token for token in tokenizer.tokenizer_json["added_tokens"] if token["content"] == "<|bos|>"]
    plain = Tokenizer({**tokenizer.tokenizer_json, "added_tokens": kept})
    notice = write_modelfile(tmp_path / "m.Modelfile", tmp_path / "m.gguf", CONFIG, plain)
    assert "continues texts" in notice and "TEMPLATE" not in (tmp_path / "m.Modelfile").read_text()


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
    with pytest.raises(ValueError, match=problem):
        parse_modelfile(text)
