r"""Learning a byte-level BPE vocabulary: count the pieces of a text, then join the commonest pair again and
again.

The one idea: training is a function from text to an ordered list of merges, and who computes it does not
show in the result. Two libraries can: `tokenizers`, always installed, and `ffbpe`, several times faster
where it is. Both break ties the same way (the higher count, then the lower pair of ids), so their merges
are equal, and a test holds them to it.

What it is not: an encoder. See `tokenizer.py`.

Source: byte-level BPE, Radford et al. 2019 (GPT-2). The split is the one published with GPT-4's vocabulary,
with the longest group of digits left open.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from string import ascii_letters

from fledgling.config import UserError

Merge = tuple[str, str]

# Put between pairs of digits for a scanner that takes them in threes. A piece by itself, and of one byte: it
# holds no pair to merge, so it leaves no trace in training and one token in encoding.
DIGIT_MARK = "\0"

# The same split, in the spelling for which ffbpe has a hand-written scanner: 6 times faster than a regex
# engine. It differs from split_pattern(3) in nothing but the white space that ends a text, which `_clean`
# takes away.
_FFBPE_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def split_pattern(max_digits: int) -> str:
    """The GPT-4-style split regex with digits in groups of at most `digits` (1, 2 or 3)."""
    if max_digits not in (1, 2, 3):
        raise UserError(f"tokenizer.max_digits is {max_digits!r}; the longest group of digits is 1, 2 or 3")
    numbers = r"\p{N}" if max_digits == 1 else rf"\p{{N}}{{1,{max_digits}}}"
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + numbers
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def mark_digit_pairs(text: str) -> str:
    """`text` with MARK between pairs of digits, so that split_pattern(3) cuts it as split_pattern(2) does."""
    numbers = "0123456789"
    if not text.isascii():  # the others of Unicode's class N, for which Python's expressions have no name
        numbers += "".join(sorted(c for c in set(text) if c > "\x7f" and unicodedata.category(c)[0] == "N"))
    return re.sub(f"[{numbers}]{{2}}(?=[{numbers}])", r"\g<0>" + DIGIT_MARK, text)


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in a tokenizer.json: GPT-2's table, index = byte value.

    Bytes that print stand for themselves; the others take the characters from U+0100 on, in order.
    """
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printing else chr(next(others)) for byte in range(256)]


def replace_surrogates(text: str) -> str:
    """`text` with half surrogates (JSON can carry them, UTF-8 cannot) replaced by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def learn_merges(
    texts: Iterable[str],
    vocab_size: int,
    max_digits: int,
    trainer: str,
    max_characters: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Merge]:
    """Learn merges until the vocabulary has `entries` tokens (256 bytes among them) or no pair occurs twice.

    texts: documents, read once, no further than `characters` in all; progress: told the characters read so
    far. trainer: "ffbpe" or "tokenizers"; the result is the same. Returns merges over `byte_alphabet`,
    first learned first.
    """
    source = _clean_texts(texts, max_characters, progress)
    return (_learn_ffbpe if trainer == "ffbpe" else _learn_tokenizers)(source, vocab_size, max_digits)


def pick_trainer(requested: str = "auto") -> str:
    """The library that trains: `wanted`, or with "auto" ffbpe where it is installed, else tokenizers."""
    if requested not in ("auto", "ffbpe", "tokenizers"):
        raise UserError(f'unknown trainer "{requested}"; choose auto, ffbpe or tokenizers')
    installed = importlib.util.find_spec("ffbpe") is not None
    if requested == "ffbpe" and not installed:
        raise UserError("the trainer ffbpe is not installed; pip install ffbpe, or use tokenizers")
    return "ffbpe" if installed and requested != "tokenizers" else "tokenizers"


def fit_merges(merges: list[Merge], vocab_size: int, letter_tokens: bool) -> list[Merge]:
    """The merges of a vocabulary of at most `entries` tokens, with room for every letter if `letters`.

    Every byte is a token, so single ASCII letters always are. A space and a letter is guaranteed by taking
    the longest beginning of `merges` that leaves room for the missing ones and adding those last: a piece "
    q" holds one pair, so a merge of any rank makes it one token, and a merge of the last rank disturbs no
    other. (A beginning of a list of merges is itself a BPE vocabulary.) Fewer tokens than `entries` come
    back when the merges run out.
    """
    space = byte_alphabet()[0x20]
    missing = dict.fromkeys(space + letter for letter in ascii_letters) if letter_tokens else {}
    tokens: set[str] = set()
    kept: list[Merge] = []
    for merge in merges:
        token = merge[0] + merge[1]
        grows = token not in tokens and token not in missing
        if 256 + len(tokens) + len(missing) + grows > vocab_size:
            break
        missing.pop(token, None)
        tokens.add(token)
        kept.append(merge)
    return kept + [(space, token[1]) for token in missing]


def _clean_texts(
    texts: Iterable[str], max_characters: int | None, progress: Callable[[int], None] | None
) -> Iterator[str]:
    """Documents as the trainers read them: valid UTF-8, no white space at the end, `characters` at most."""
    read = 0
    for text in texts:
        if max_characters is not None:
            text = text[: max_characters - read]
        read += len(text)
        if progress:
            progress(read)
        if text := replace_surrogates(text).rstrip():
            yield text
        if max_characters is not None and read >= max_characters:
            return


def _learn_tokenizers(texts: Iterator[str], vocab_size: int, max_digits: int) -> list[Merge]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern(max_digits)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, show_progress=False, initial_alphabet=alphabet
    )
    model.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(model.to_str())["model"]["merges"]]


def _learn_ffbpe(texts: Iterator[str], vocab_size: int, max_digits: int) -> list[Merge]:
    import ffbpe

    counter = ffbpe.PreTokenizer([], pat_str=_FFBPE_PATTERN).word_counter()
    counter.add_source(map(mark_digit_pairs, texts) if max_digits == 2 else texts)
    trainer = ffbpe.BpeTrainer([], initial_alphabet="byte_level", tie_break="smallest_pair_id", bigram_cutoff_freq=2)
    if max_digits == 1:
        trainer.add_words(_single_digits(counter.words()))
    else:
        trainer.add_word_counter(counter)
    trainer.train(vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "merges.txt"
        trainer.validate_model().save_files(Path(folder) / "vocab.json", file, format="gpt2")
        lines = file.read_text(encoding="utf-8").split("\n")
    # "left right => count" a line; no character of the byte alphabet is a space.
    return [(left, right) for left, right, *_ in (line.split(" ") for line in lines if line and "#v" not in line)]


def _single_digits(words: dict[str, int]) -> list[tuple[str, int]]:
    """Counts of pieces with groups of up to three digits broken into single ones.

    Exact, because a piece that begins with a number is nothing but numbers, and a run of numbers cut in
    threes holds the same single ones.
    """
    counts: dict[str, int] = {}
    for word, count in words.items():
        if len(word) > 1 and unicodedata.category(word[0])[0] == "N":
            for character in word:
                counts[character] = counts.get(character, 0) + count
        else:
            counts[word] = counts.get(word, 0) + count
    return list(counts.items())
