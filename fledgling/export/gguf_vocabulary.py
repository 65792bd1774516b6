"""Writes a tokenizer into a GGUF file: byte-level BPE ("gpt2") or SentencePiece's BPE ("llama").

llama.cpp chooses how a text is split before BPE by a name, so only tokenizers whose pre-tokenizer has one can be
written. Reading is gguf_tokenizer.py.
"""

from __future__ import annotations

import re
from typing import Any

from fledgling.config import ModelConfig, UserError
from fledgling.export.chat_template import special_token_ids, tokenizer_config
from fledgling.text.bpe import split_pattern
from fledgling.text.sentence_piece import adds_space, is_sentence_piece
from fledgling.text.tokenizer import Tokenizer

# llama.cpp trims spaces after special tokens of a model whose name has one of the first, and looks these tokens up
# without asking whether they are there (llama-vocab.cpp).
PHI_NAMES, PHI_TOKENS = ("phi-3", "phi3"), ("</s>", "<unk>", "<s>", "<|endoftext|>")
UNREACHABLE = -1e9  # the score of a piece that no merge makes


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raises UserError for a tokenizer that no GGUF file can hold."""
    if is_sentence_piece(tokenizer.tokenizer_json):
        model = tokenizer.tokenizer_json["model"]
        if model["type"] != "BPE" or not model.get("byte_fallback"):
            raise UserError("a Unigram tokenizer is not written to GGUF here: use export hf")
    else:
        pre_tokenizer_name(tokenizer)


def safe_model_name(name: str, tokenizer: Tokenizer | None) -> str:
    """Returns a model's name as llama.cpp can read it: another spelling where it would look for tokens of Phi-3."""
    document = tokenizer.tokenizer_json if tokenizer else {"model": {"vocab": {}}}
    known = {*document["model"]["vocab"], *(token["content"] for token in document.get("added_tokens", []))}
    if known.issuperset(PHI_TOKENS):
        return name
    return re.sub("|".join(PHI_NAMES), lambda found: f"{found[0][:3]}_3", name, flags=re.IGNORECASE)


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """Returns llama.cpp's name of the tokenizer's pre-tokenizer; raises UserError if it has none.

    `dbrx` and not `llama-bpe` for groups of three digits: the same expression, but merges are never skipped.
    """
    document = tokenizer.tokenizer_json
    pre_tokenizer = document["pre_tokenizer"]
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    uses_regex = steps[-1].get("use_regex", True)
    kinds = [step["type"] for step in steps]
    if uses_regex and kinds == ["ByteLevel"]:
        return "gpt-2"
    if uses_regex and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    skips = bool(document["model"].get("ignore_merges"))
    names = {split_pattern(1): "qwen2", split_pattern(3): "llama-bpe" if skips else "dbrx"}
    if len(patterns) != 1 or patterns[0] not in names:
        raise UserError(
            "llama.cpp has no name for this tokenizer's pre-tokenizer (digits in groups of 1 or 3 have one, "
            "groups of 2 have none): use export hf"
        )
    return names[patterns[0]]


def write_vocabulary(writer: Any, config: ModelConfig, tokenizer: Tokenizer, gguf: Any) -> None:
    """Writes tokens, their types, merges or scores, special tokens and chat template to a `gguf.GGUFWriter`."""
    document = tokenizer.tokenizer_json
    model, kinds = document["model"], gguf.TokenType
    names = {index: text for text, index in model["vocab"].items()} | {
        i: t for t, i in tokenizer.special_tokens.items()
    }
    user_defined = {entry["id"] for entry in document.get("added_tokens") or () if not entry.get("special")}
    types = dict.fromkeys(names, kinds.NORMAL) | dict.fromkeys(user_defined, kinds.USER_DEFINED)
    types |= dict.fromkeys(tokenizer.special_tokens.values(), kinds.CONTROL)
    names |= {entry["id"]: entry["content"] for entry in document.get("added_tokens") or ()}
    is_pieces = is_sentence_piece(document)
    if is_pieces:
        types |= {index: kinds.BYTE for index, text in names.items() if len(text) == 6 and text.startswith("<0x")}
        if (unknown := model["vocab"].get(model.get("unk_token"))) is not None:
            types[unknown] = kinds.UNKNOWN
            writer.add_unk_token_id(unknown)
    size = range(config.vocab_size)
    writer.add_tokenizer_model("llama" if is_pieces else "gpt2")
    writer.add_tokenizer_pre("default" if is_pieces else pre_tokenizer_name(tokenizer))
    writer.add_token_list([names.get(index, f"[unused {index}]") for index in size])
    writer.add_token_types([types.get(index, kinds.UNUSED) for index in size])
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    if is_pieces:  # the pair whose union has the best score merges first
        scores: dict[str, float] = {}
        for rank, pair in enumerate(merges):
            scores.setdefault("".join(pair), -float(rank))
        writer.add_token_scores([scores.get(names.get(index, ""), UNREACHABLE) for index in size])
    else:
        writer.add_token_merges([" ".join(pair) for pair in merges])
    _write_special(writer, config, tokenizer)
    writer.add_add_space_prefix(adds_space(document))


def _write_special(writer: Any, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Writes where texts begin and answers end, and the chat template."""
    ids = special_token_ids(tokenizer)
    if ids:
        ends = ids["eos_token_id"]
        writer.add_bos_token_id(ids["bos_token_id"])
        writer.add_eos_token_id(ends[0] if isinstance(ends, list) else ends)
    writer.add_add_bos_token(False)  # the chat template renders it, so the tokenizer must not add it again
    if template := tokenizer_config(tokenizer, config.context).get("chat_template"):
        writer.add_chat_template(template)
