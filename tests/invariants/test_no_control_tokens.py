"""Law: whatever text a user writes or a tool says, no control token comes of it.

FLEDGLING_TEXTS sets how many texts are tried (default 1,500).
"""

from __future__ import annotations

import os
import random

import pytest

from fledgling.infer.tools import Tool, ToolState
from fledgling.text.conversation import render_conversation, render_prompt
from fledgling.text.tokenizer import SPECIAL_TOKENS, Tokenizer

TEXTS = int(os.environ.get("FLEDGLING_TEXTS", "1500"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps <|over|> the lazy dog again and again " * 9], vocab_size=340)


def hostile(chance: random.Random) -> str:
    """Names of control tokens whole, in pieces, nested, with NUL and look-alikes, and bytes that are no UTF-8."""
    pieces = []
    for _ in range(chance.randrange(1, 9)):
        name = chance.choice(SPECIAL_TOKENS)
        cut = chance.randrange(len(name) + 1)
        broken = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 7)))
        pieces.append(
            chance.choice(
                (
                    name,
                    name[:cut],
                    name[cut:],
                    name[:cut] + name + name[cut:],
                    name[:cut] + chance.choice(("\0", "\u200b", "\u00ad", " ", "\ufeff", "\n")) + name[cut:],
                    name.replace("<|", "\uff1c\uff5c"),
                    name.upper(),
                    "".join(chr(chance.randrange(0xD800)) for _ in range(3)),
                    broken.decode("utf-8", chance.choice(("replace", "ignore", "backslashreplace"))),
                    broken.decode("latin-1"),
                    "\0" * chance.randrange(1, 4),
                    "<|",
                    "|>",
                    "the quick fox",
                )
            )
        )
    return "".join(pieces) or "\0"


def test_no_text_becomes_a_control_token(tokenizer) -> None:
    control, chance = set(tokenizer.special_tokens.values()), random.Random(int(os.environ.get("FLEDGLING_SEED", "0")))
    named = 0
    for number in range(TEXTS):
        text = hostile(chance)
        named += any(name in text for name in SPECIAL_TOKENS)
        ids = tokenizer.encode(text)
        assert not control.intersection(ids), repr(text)
        prompt = render_prompt(tokenizer, {"messages": [{"role": "user", "content": text}]})
        assert control_of(prompt, control) == layout(tokenizer, "bos user_start user_end assistant_start"), repr(text)
        state = ToolState(tokenizer, Tool(lambda _, said=text: said, 2000))
        forced = [token for given in (state.start, ord("1"), state.end) for token in state.feed(given)]
        assert control_of(forced, control) == layout(tokenizer, "output_start output_end"), repr(text)
        if number % 8 == 0:
            parts = [{"type": "python", "text": text}, {"type": "output", "text": text}, {"type": "text", "text": text}]
            talk = [{"role": "system", "content": text}, {"role": "user", "content": text}]
            talk.append({"role": "assistant", "content": parts})
            whole = render_conversation(tokenizer, {"messages": talk}).tokens.tolist()
            order = (
                "bos user_start user_end assistant_start python_start python_end output_start output_end assistant_end"
            )
            assert control_of(whole, control) == layout(tokenizer, order), repr(text)
    assert named > TEXTS / 3  # the texts are hostile indeed


def control_of(ids: list[int], control: set[int]) -> list[int]:
    return [token for token in ids if token in control]


def layout(tokenizer: Tokenizer, names: str) -> list[int]:
    return [tokenizer.special_tokens[f"<|{name}|>"] for name in names.split()]


def test_text_that_no_encoding_has_is_refused_or_becomes_text(tokenizer) -> None:
    """Lone surrogates cannot be written as UTF-8: they are replaced or refused, and never a control token."""
    control = set(tokenizer.special_tokens.values())
    for text in ("\ud800", "<|bos|>\udfff", "\udcff<|user_end|>"):
        try:
            ids = tokenizer.encode(text)
        except (ValueError, TypeError):
            continue
        assert not control.intersection(ids)
