"""Every character of Unicode is split alike by all libraries, whichever version of Unicode each of them knows."""

import copy
import unicodedata

import pytest

from fledgling.text import bpe
from fledgling.text.bpe import learn_merges, mark_digit_pairs, split_pattern
from fledgling.text.tokenizer import Tokenizer
from fledgling.text.unicode_classes import CharacterComparison, is_number, make_probe, make_splitter

# (first, end, step) of code points; planes 4 to 13 are not assigned, and 15 and 16 are private
CHANGING = [(0x80, 0x3400, 5), (0xA000, 0xAC00, 5), (0xF900, 0x12000, 5), (0x16A00, 0x17000, 5), (0x1CC00, 0x1FC00, 5)]
SAMPLES = [(0x80, 0xD800, 331), (0xE000, 0x110000, 331)]
ASSIGNED = [(0x80, 0xD800, 1), (0xE000, 0x40000, 1), (0x40000, 0xE0000, 257), (0xE0000, 0xE0200, 1)]
NEWER = {  # character: the version of Unicode that it is of; Python 3.11 knows 14
    "\U0001e4f0": 15.0,  # digits
    "\U00010d40": 16.0,
    "\U00016d70": 16.0,
    "\U0001ccf0": 16.0,
    "\U000113d1": 16.0,  # letters
    "\u1c89": 16.0,
    "\u088f": 17.0,
    "\U000323b0": 17.0,
    "\U00011de0": 17.0,  # a digit
    "\u20c1": 17.0,  # a sign
}


def trained(digits: int) -> Tokenizer:
    text = " ".join([*"ab'ſ1²½é中", "don't", "12345", "٣٤", *NEWER]) + "\n"
    return Tokenizer.train([text * 20], 290 + 9, max_digits=digits, letter_tokens=False, trainer="tokenizers")


@pytest.mark.parametrize(
    ("digits", "ranges"),
    [(2, CHANGING), (2, SAMPLES), *((digits, ASSIGNED) for digits in (1, 2, 3))],
    ids=["changing", "samples", "all-1", "all-2", "all-3"],
)
def test_every_character_has_the_same_ids_in_a_batch_and_alone(digits, ranges):
    """Among them those that gigatoken splits differently, and those that it alone encodes."""
    tokenizer = trained(digits)
    codes = [code for limits in ranges for code in range(*limits)]
    for start in range(0, len(codes), 4096):
        block = [chr(code) for code in codes[start : start + 4096]]
        comparison = getattr(tokenizer._batch_encoder[1], "_comparison", None)
        different = set(comparison.find_different(block)) if comparison else set()
        same = [character for number, character in enumerate(block) if number not in different]
        texts = ["\n".join(f"a{c}b 1{c}{c}{c}2 {c}'{c}s" for c in same[at : at + 64]) for at in range(0, len(same), 64)]
        texts += [f"a{block[number]}b 1{block[number] * 3}2" for number in sorted(different)]
        assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts], hex(codes[start])


@pytest.mark.parametrize("character", NEWER, ids=lambda character: f"{ord(character):x}")
@pytest.mark.parametrize("digits", [1, 2, 3])
def test_newer_characters_are_split_alike_by_every_library(character, digits):
    text = f"a{character}b x{character * 5} 1{character}23{character}\n{character}'s "
    tokenizer = trained(digits)
    assert tokenizer.encode_batch([text, "a", text * 3]) == [tokenizer.encode(part) for part in (text, "a", text * 3)]
    learned = [learn_merges([text, f"b{character} a12"] * 2, 300, digits, name) for name in ("ffbpe", "tokenizers")]
    assert learned[0] == learned[1] != []


def test_digits_in_pairs_do_not_depend_on_the_unicode_of_python(monkeypatch):
    """A mark separates pairs where the split in threes would not: the two together are the split in pairs."""
    monkeypatch.setattr(unicodedata, "category", lambda character: pytest.fail("Python's tables were asked"))
    in_pairs, in_threes = make_splitter(split_pattern(2)), make_splitter(split_pattern(3))
    for character in ("1", "²", "٣", *NEWER):
        for text in (character * 5, f"1{character}2{character}34", f"a{character}{character}b{character}{character}1"):
            pieces = [piece for piece in in_threes(mark_digit_pairs(text)) if piece != bpe.DIGIT_MARK]
            assert pieces == in_pairs(text), hex(ord(character))
    assert is_number("½") and is_number("\U0001e4f0") and not is_number("a") and not is_number("é")


def test_a_character_is_tried_once_and_remembered():
    tried: list[str] = []

    def compare(probes: list[str]) -> list[bool]:
        tried.extend(probes)
        return ["ß" not in probe for probe in probes]

    comparison = CharacterComparison(compare)
    texts = ["plain", "été", "Straße", "été\U0010ffff", "ß"]
    assert [comparison.find_different(texts) for _ in range(2)] == [[2, 4]] * 2
    assert sorted(tried) == sorted(map(make_probe, "éß\U0010ffff")), "ASCII is never tried"


def test_a_long_s_after_an_apostrophe_is_part_of_the_probe():
    assert "'ſ" in make_splitter(split_pattern(3))(make_probe("ſ")), "the regex ignores case, and this is an s"


def changed(document: dict, **parts: object) -> dict:
    document = copy.deepcopy(document)
    for name, value in parts.items():
        (document["model"] if name in document["model"] else document)[name] = value
    return document


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": split_pattern(3)}, "behavior": "Isolated", "invert": False}


def in_sequence(*parts: dict) -> dict:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(parts)}}


VARIANTS = {
    "no split": {"pre_tokenizer": BYTES},
    "no split, space": {"pre_tokenizer": {**BYTES, "add_prefix_space": True}},
    "GPT-2": {"pre_tokenizer": {**BYTES, "use_regex": True}},
    "GPT-2, space": {"pre_tokenizer": {**BYTES, "use_regex": True, "add_prefix_space": True}},
    "space": in_sequence(SPLIT, {**BYTES, "add_prefix_space": True}),
    "removed": in_sequence({**SPLIT, "behavior": "Removed"}, BYTES),
    "merged": in_sequence({**SPLIT, "behavior": "MergedWithNext"}, BYTES),
    "digits": in_sequence({"type": "Digits", "individual_digits": True}, BYTES),
    "dropout": {"dropout": 0.5},
    "NFC": {"normalizer": {"type": "NFC"}},
    "NFKC": {"normalizer": {"type": "NFKC"}},
    "lower case": {"normalizer": {"type": "Lowercase"}},
    "no merges first": {"ignore_merges": True},
}
TEXTS = (
    *("", " a", "a b", "  two  spaces\n\n\ttab ", "WE'LL don't we'ſ 12345 1２3"),
    "cafe\u0301 caf\u00e9 \u212b \u1100\u1161\u11a8 \U00016d63\U00016d67",
    *NEWER,
)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_tokenizer_made_elsewhere_has_the_same_ids_in_a_batch_and_alone(variant):
    tokenizer = Tokenizer(changed(trained(3).tokenizer_json, **variant))
    alone = [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch(TEXTS) == alone == tokenizer.encode_batch(TEXTS)
