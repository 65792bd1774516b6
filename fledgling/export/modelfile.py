"""Writes the Modelfile with which `ollama create NAME -f FILE` takes a GGUF file.

A Modelfile is a list of instructions: FROM, PARAMETER, TEMPLATE, SYSTEM, ADAPTER, LICENSE, MESSAGE, each with a value,
which may be in three double quotes. TEMPLATE is Go's text/template, and renders the layout of `text/conversation.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

from fledgling.config import ModelConfig
from fledgling.export.chat_template import supports_chat
from fledgling.export.go_template import derive_go_template
from fledgling.record import write_text
from fledgling.text.tokenizer import Tokenizer
from fledgling.text.turns import TOOLS_INTRODUCTION

# System message and tools come before the first question. Ollama adds no token: the file says add_bos_token = false. It
# joins messages of one role in a row, and gives all system messages as .System. An answer stays open while tools answer
# it, and where the history ends with it. A call in JSON has Go's spaces, which are none.
_WITH_NAMES = """\
<|bos|>{{- $first := true }}{{ $open := false }}
{{- range .Messages }}
{{- if eq .Role "user" }}
{{- if $open }}<|assistant_end|>{{ $open = false }}{{ end }}<|user_start|>
{{- if $first }}{{ $first = false }}
{{- if $.System }}{{ $.System }}{{ "\\n\\n" }}{{ end }}
{{- if $.Tools }}{{ `TOOLS` }}{{ range $.Tools }}{{ "\\n" }}{{ .Function }}{{ end }}{{ "\\n\\n" }}{{ end }}
{{- end }}{{ .Content }}<|user_end|>
{{- else if $first }}
{{- else if eq .Role "assistant" }}
{{- if not $open }}<|assistant_start|>{{ $open = true }}{{ end }}{{ .Content }}
{{- range .ToolCalls }}<|python_start|>CALL<|python_end|>
{{- end }}
{{- else if eq .Role "tool" }}
{{- if $open }}<|output_start|>{{ .Content }}<|output_end|>{{ end }}
{{- end }}
{{- end }}
{{- if not $open }}<|assistant_start|>{{ end }}"""
STOPS = ("<|assistant_end|>", "<|user_start|>", "<|bos|>")
CALL = '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}'
TEMPLATE = _WITH_NAMES.replace("TOOLS", TOOLS_INTRODUCTION).replace("CALL", CALL)


def write_modelfile(path: Path, gguf_path: Path, config: ModelConfig, tokenizer: Tokenizer) -> str:
    """Writes the Modelfile of a GGUF file that is in the same folder; returns what it lacks, "" if nothing.

    Without a template Ollama looks whether it knows the layout in the GGUF file, and else sends texts as they are.
    """
    layout, notice, template = tokenizer.chat_layout, "", None
    if layout:
        stops = list(layout["end_tokens"])
        template = derive_go_template(tokenizer)
        if template is None:
            notice = "it has no TEMPLATE: the chat template's turns are no fixed texts, so Ollama must know the layout"
    elif supports_chat(tokenizer):
        stops = [name for name in STOPS if name in tokenizer.special_tokens]
        template = TEMPLATE
    else:
        stops, notice = [], "it has no TEMPLATE: this model continues texts"
    lines = [
        f"FROM ./{gguf_path.name}",
        *([] if template is None else [f'TEMPLATE """{template}"""']),
        f"PARAMETER num_ctx {config.context}",
        *(f"PARAMETER stop {json.dumps(name)}" for name in stops),
    ]
    write_text(path, "\n".join(lines) + "\n")
    return notice
