r"""Trains a byte-level BPE vocabulary: counts the pieces of a text, then merges the most frequent pair repeatedly.

The result is an ordered list of merges, and does not depend on the library that computes it: `tokenizers`, always
installed, or `ffbpe`, several times faster. Both break ties in the same way (the higher count, then the lower pair of
ids), so their merges are equal (tested). `tokenizer.py` encodes.

Source: byte-level BPE, Radford et al. 2019 (GPT-2). The split regex is that of GPT-4's vocabulary, with the longest
group of digits as a parameter.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from string import ascii_letters

from fledgling.config import UserError
from fledgling.text.unicode_classes import CharacterComparison, is_number, make_splitter

Merge = tuple[str, str]

# Separates pairs of digits for a scanner that takes them in threes. It is a piece of one byte: without a pair to merge,
# it has no effect in training, and it is one token in encoding.
DIGIT_MARK = "\0"

# split_pattern(3) as ffbpe writes it, for which it has a hand-written scanner: 6 times faster than a regex engine. The
# two differ only in the white space at the end of a text, which `_clean_texts` removes.
_FFBPE_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def split_pattern(max_digits: int) -> str:
    """Returns the split regex of GPT-4, with digits in groups of at most `max_digits` (1, 2 or 3)."""
    if max_digits not in (1, 2, 3):
        raise UserError(f"tokenizer.max_digits is {max_digits!r}; the longest group of digits is 1, 2 or 3")
    numbers = r"\p{N}" if max_digits == 1 else rf"\p{{N}}{{1,{max_digits}}}"
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + numbers
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def mark_digit_pairs(text: str) -> str:
    """Returns `text` with a mark between pairs of digits: split_pattern(3) then splits it as split_pattern(2) does."""
    numbers = "0123456789"
    if not text.isascii():  # the others of Unicode's class N, which `re` cannot name
        numbers += "".join(sorted(c for c in set(text) if c > "\x7f" and is_number(c)))
    return re.sub(f"[{numbers}]{{2}}(?=[{numbers}])", r"\g<0>" + DIGIT_MARK, text)


def byte_alphabet() -> list[str]:
    """Returns the 256 characters that represent bytes in a tokenizer.json (GPT-2's table); the index is the byte.

    Printable bytes represent themselves; the others are the characters from U+0100 on, in order.
    """
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printing else chr(next(others)) for byte in range(256)]


def replace_surrogates(text: str) -> str:
    """Returns `text` with lone surrogates (possible in JSON, not in UTF-8) replaced by U+FFFD."""
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
    """Learns merges until the vocabulary has `vocab_size` tokens (with the 256 bytes), or no pair occurs twice.

    Args:
        texts: documents, read once.
        trainer: "ffbpe" or "tokenizers"; the result is the same.
        max_characters: characters after which reading stops; None reads all.
        progress: is called with the number of characters read so far.

    Returns:
        Merges over `byte_alphabet`, in the order in which they were learned.
    """
    source = _clean_texts(texts, max_characters, progress)
    return (_learn_ffbpe if trainer == "ffbpe" else _learn_tokenizers)(source, vocab_size, max_digits)


def pick_trainer(requested: str = "auto") -> str:
    """Returns the library that trains: the requested one; for "auto", ffbpe if installed, else tokenizers."""
    if requested not in ("auto", "ffbpe", "tokenizers"):
        raise UserError(f'unknown trainer "{requested}"; choose auto, ffbpe or tokenizers')
    installed = importlib.util.find_spec("ffbpe") is not None
    if requested == "ffbpe" and not installed:
        raise UserError("the trainer ffbpe is not installed; pip install ffbpe, or use tokenizers")
    return "ffbpe" if installed and requested != "tokenizers" else "tokenizers"


def fit_merges(merges: list[Merge], vocab_size: int, letter_tokens: bool) -> list[Merge]:
    """Returns the merges of a vocabulary of at most `vocab_size` tokens; fewer if there are not enough merges.

    With `letter_tokens`, every " " + ASCII letter is a token (single letters always are: they are bytes). For that,
    the longest prefix of `merges` is kept that has space for the missing ones, which are added at the end: the piece
    " q" has one pair, so a merge of any rank makes it one token, and a merge of the last rank affects no other piece.
    A prefix of a list of merges is itself a BPE vocabulary.
    """
    space = byte_alphabet()[0x20]
    missing = dict.fromkeys(space + letter for letter in ascii_letters) if letter_tokens else {}
    tokens: set[str] = set()
    kept: list[Merge] = []
    for merge in merges:
        token = merge[0] + merge[1]
        is_new = token not in tokens and token not in missing
        if 256 + len(tokens) + len(missing) + is_new > vocab_size:
            break
        missing.pop(token, None)
        tokens.add(token)
        kept.append(merge)
    return kept + [(space, token[1]) for token in missing]


def _clean_texts(
    texts: Iterable[str], max_characters: int | None, progress: Callable[[int], None] | None
) -> Iterator[str]:
    """Yields documents as the trainers read them: valid UTF-8, without white space at the end."""
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

    scanner = ffbpe.PreTokenizer([], pat_str=_FFBPE_PATTERN)
    split, split_in_threes = make_splitter(split_pattern(max_digits)), make_splitter(split_pattern(3))
    comparison = CharacterComparison(
        lambda probes: [scanner.get_words(probe) == Counter(split_in_threes(probe)) for probe in probes]
    )
    other_words: Counter[str] = Counter()  # of texts with characters that ffbpe splits differently

    def select_texts() -> Iterator[str]:
        for text in texts:
            if comparison.find_different([text]):
                other_words.update(split(text))
            else:
                yield mark_digit_pairs(text) if max_digits == 2 else text

    counter = scanner.word_counter()
    counter.add_source(select_texts())
    trainer = ffbpe.BpeTrainer([], initial_alphabet="byte_level", tie_break="smallest_pair_id", bigram_cutoff_freq=2)
    if max_digits == 1:
        trainer.add_words(list((_single_digits(counter.words()) + other_words).items()))
    elif other_words:
        trainer.add_words(list((Counter(counter.words()) + other_words).items()))
    else:
        trainer.add_word_counter(counter)
    trainer.train(vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "merges.txt"
        trainer.validate_model().save_files(Path(folder) / "vocab.json", file, format="gpt2")
        lines = read_merge_lines(file)
    # A line is "left right => count"; the byte alphabet has no space.
    return [(left, right) for left, right, *_ in (line.split(" ") for line in lines)]


def read_merge_lines(file: Path) -> list[str]:
    """Returns the lines of a merges.txt, without its header.

    Only the first line can be one: a merge may begin with "#version" too, as in `#versions`, or contain it.
    """
    lines = file.read_text(encoding="utf-8").split("\n")
    return [line.removesuffix("\r") for line in lines[lines[0].startswith("#version") :] if line.strip()]


def _single_digits(words: dict[str, int]) -> Counter[str]:
    """Returns the counts of pieces after groups of up to three digits are split into single digits.

    This is exact: a piece that begins with a digit has only digits, and a run of digits cut in threes has the same
    single digits.
    """
    counts: Counter[str] = Counter()
    for word, count in words.items():
        if len(word) > 1 and is_number(word[0]):
            for character in word:
                counts[character] += count
        else:
            counts[word] += count
    return counts
