"""Chat templates that do what those of Qwen 3, QwQ, DeepSeek R1 and V3.1 and Mistral do, and tokenizers with them."""

import json
from functools import cache

from fledgling.text.tokenizer import Tokenizer

END = "<|im_end|>"
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
BEGUN = ASK.replace("assistant\n", "assistant\n<think>\n")
SPLIT = (
    "{% set r = '' %}{% set c = m.content %}{% if '</think>' in c %}"
    "{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
HISTORY = "{% for m in messages %}{% if m.role != 'assistant' %}" + TURN + "{% else %}" + SPLIT
THOUGHTS = "{{ '<|im_start|>assistant\n<think>\n' + r + '\n</think>\n\n' + c + '<|im_end|>\n' }}"
ANSWER = "{{ '<|im_start|>assistant\n' + c + '<|im_end|>\n' }}"
LAST = "{% if loop.last %}" + THOUGHTS + "{% else %}" + ANSWER + "{% endif %}{% endif %}{% endfor %}"
TEMPLATES = {
    "plain": "{% for m in messages %}" + TURN + "{% endfor %}" + ASK,
    "qwen3": HISTORY + LAST + ASK,
    "qwen3 thinking": HISTORY + LAST + BEGUN,
    "qwq": HISTORY + ANSWER + "{% endif %}{% endfor %}" + BEGUN,
    "deepseek r1": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content }}"
        "{% elif m.role == 'assistant' %}{% set c = m.content %}{% if '</think>' in c %}"
        "{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<|sep|>' + c + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|sep|><think>\n' }}{% endif %}"
    ),
    "deepseek v3.1": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content }}"
        "{% elif m.role == 'assistant' %}{% set c = m.content %}{% if '</think>' in c %}"
        "{% set c = c.split('</think>', 1)[1] %}{% endif %}{{ '<|sep|></think>' + c + '<|im_end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|sep|></think>' }}{% endif %}"
    ),
    "late system": (
        "{{ bos_token }}{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}"
        "{% if s and messages[loop.index0 + 1:] | length < 2 %}{{ s + '\n\n' }}{% endif %}"
        "{{ m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}"
        "{{ ' ' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    ),
}
CONTROLS = ("<s>", "<|im_start|>", END, "<|sep|>", "<|user|>")
TALK = [
    {"role": "user", "content": "the quick fox"},
    {"role": "assistant", "content": "says 12"},
    {"role": "user", "content": "and\n\n3?"},
    {"role": "assistant", "content": "brown"},
]
THINKING = [message | {"content": f"<think>\nit is 3\n</think>\n\n{message['content']}"} for message in TALK[1::2]]
THINKING = [TALK[0], THINKING[0], TALK[2], THINKING[1]]


@cache
def train_plain() -> Tokenizer:
    """A small tokenizer with the control tokens of the templates."""
    trained = Tokenizer.train(["the quick brown fox says: it is 3 user assistant <think>\n\n</think> 12 " * 9], 340)
    renamed = json.loads(json.dumps(trained.tokenizer_json))
    for token, name in zip(renamed["added_tokens"], CONTROLS, strict=False):
        token["content"] = name
    renamed["added_tokens"] = renamed["added_tokens"][: len(CONTROLS)]
    return Tokenizer(renamed)


def tokenizer_of(template: str) -> Tokenizer:
    """A tokenizer whose conversations have that layout."""
    layout = {"chat_template": template, "bos_token": "<s>", "eos_token": END, "stop_ids": []}
    return train_plain().with_layout(layout)
