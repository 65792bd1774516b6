"""`fledgling tokenizer`: train one, see what it makes of kinds of text, look at its pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from fledgling.cli.options import Json
from fledgling.config import TokenizerConfig, UserError

app = App(name="tokenizer", help="Train, evaluate and show a tokenizer.")
DEFAULTS = {field.name: field.default for field in fields(TokenizerConfig)}


@app.command
def train(
    sources: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    /,
    *,
    out: Path = Path("tokenizer"),
    vocab_size: int = 32768,
    digits: int = DEFAULTS["max_digits"],
    letters: bool = DEFAULTS["letter_tokens"],
    characters: int = DEFAULTS["max_characters"],
    trainer: str = "auto",
    data_dir: Path | None = None,
    as_json: Json = False,
) -> None:
    """Train a tokenizer and write OUT/tokenizer.json and OUT/training.json.

    Parameters
    ----------
    sources
        "embedded" (the default: the text of the installed Python), or files and folders, here or in the data
        directory: .txt .md .jsonl .parquet. Read in turn until `characters` are reached.
    out
        Directory to write.
    vocab_size
        Entries in all, control tokens included.
    digits
        Longest group of digits in one token: 1, 2 or 3.
    letters
        Guarantee one token for every letter with a space before it.
    characters
        Read no further than this.
    trainer
        auto, ffbpe or tokenizers; the result is the same.
    data_dir
        Where the data sets are; default FLEDGLING_DATA.
    """
    from fledgling.text.tokenizer import Tokenizer

    with Console(stderr=True).status("reading") as status:

        def progress(read: int) -> None:
            status.update(f"training a tokenizer of {vocab_size:,} entries: {read / 1e6:,.0f} M characters")

        tokenizer = Tokenizer.train(
            _read_texts(sources or ("embedded",), data_dir, status.update),
            vocab_size,
            max_digits=digits,
            letter_tokens=letters,
            max_characters=characters,
            trainer=trainer,
            progress=progress,
        )
    file = tokenizer.save(out)
    about = {**(tokenizer.training_info or {}), "sources": list(sources or ("embedded",))}
    about |= {"fingerprint": tokenizer.fingerprint()}
    file.with_name("training.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps({"path": str(file), **about}, indent=2))
    else:
        print(f"{file}: {tokenizer.vocab_size:,} entries from {about['characters']:,} characters")
        print(f"{about['seconds']:.1f} s with {about['trainer']}, reading included")


@app.command(name="eval")
def evaluate(
    tokenizer: Path,
    texts: Annotated[tuple[Path, ...], Parameter(show_default=False)] = (),
    /,
    *,
    data_dir: Path | None = None,
    as_json: Json = False,
) -> None:
    """Print bytes per token for several kinds of text, beside GPT-2's tokenizer.

    Parameters
    ----------
    tokenizer
        A tokenizer.json, or a directory with one (OUT of `train`, RUN/tokenizer, a checkpoint).
    texts
        Further text files to measure.
    data_dir
        Where the data sets are (GPT-2's tokenizer, the Declaration of Human Rights); default FLEDGLING_DATA.
    """
    from fledgling.files import resolve_data_root
    from fledgling.text import compression
    from fledgling.text.gpt2 import load_gpt2_tokenizer
    from fledgling.text.sample_texts import SAMPLE_TEXTS
    from fledgling.text.tokenizer import Tokenizer

    ours = Tokenizer.load(tokenizer)
    root = resolve_data_root(data_dir) / "tokenizers"
    kinds = SAMPLE_TEXTS | compression.read_udhr(root / "udhr2.zip") | {str(path): _read_file(path) for path in texts}
    gpt2 = load_gpt2_tokenizer(root / "gpt2")
    why = None if gpt2 else f"GPT-2 left out: no encoder.json and vocab.bpe in {root / 'gpt2'}"
    columns = {"ours": compression.measure_bytes_per_token(ours, kinds)}
    if gpt2:
        columns["gpt2"] = compression.measure_bytes_per_token(gpt2, kinds)
    made = _read_training_info(tokenizer)
    rows = [
        {
            "kind": kind,
            "bytes": len(text.encode()),
            **{name: round(c[kind], 3) for name, c in columns.items()},
        }
        for kind, text in kinds.items()
    ]
    if as_json:
        result = {"vocab_size": ours.vocab_size, "seconds": made.get("seconds"), "bytes_per_token": rows}
        print(json.dumps(result | {"left_out": why}, indent=2, ensure_ascii=False))
        return
    width = max(len(row["kind"]) for row in rows)
    print(f"{'bytes per token':<{width}} {'bytes':>11} {'ours':>6} {'GPT-2' if gpt2 else '':>6}".rstrip())
    for row in rows:
        theirs = f"{row['gpt2']:6.2f}" if gpt2 else ""
        print(f"{row['kind']:<{width}} {row['bytes']:>11,} {row['ours']:6.2f} {theirs}".rstrip())
    time = f", trained in {made['seconds']} s" if "seconds" in made else ""
    print(f"ours: {ours.vocab_size:,} entries{time}")
    if why:
        print(why)


@app.command
def show(tokenizer: Path, text: str, /, *, as_json: Json = False) -> None:
    """Print the pieces a text is cut into, with their ids.

    Parameters
    ----------
    tokenizer
        A tokenizer.json, or a directory with one.
    text
        The text; names of control tokens in it are ordinary text, as they are everywhere.
    """
    from fledgling.text.tokenizer import Tokenizer

    loaded = Tokenizer.load(tokenizer)
    ids = loaded.encode(text)
    pieces = [loaded.decode_bytes([index]) for index in ids]
    if as_json:
        named = [
            {"id": index, "bytes": list(piece), "text": piece.decode(errors="replace")}
            for index, piece in zip(ids, pieces, strict=True)
        ]
        print(json.dumps(named, ensure_ascii=False))
        return
    print("|".join(repr(piece.decode(errors="backslashreplace"))[1:-1] for piece in pieces))
    print(" ".join(map(str, ids)))
    size = len(text.encode(errors="replace"))
    print(f"{len(ids)} tokens, {size} bytes, {size / max(1, len(ids)):.2f} bytes per token")


def _read_texts(sources: tuple[str, ...], data_dir: Path | None, say: Any) -> Iterator[str]:
    """The texts of the sources in turn; of the embedded corpus what is not held out for validation."""
    for source in sources:
        say(f"reading {source}")
        if source == "embedded":
            from fledgling.corpora.embedded import harvest_embedded
            from fledgling.corpora.split import split_held_out

            yield from (document.text for document in split_held_out(harvest_embedded())[0])
        else:
            from fledgling.corpora.readers import read_documents
            from fledgling.files import resolve_data_root

            there = resolve_data_root(data_dir) / source
            path = there if there.exists() and not Path(source).exists() else Path(source)
            yield from (document.text for document in read_documents(path))


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected a text file") from None


def _read_training_info(tokenizer: Path) -> dict[str, Any]:
    """What training.json beside the tokenizer says, or nothing."""
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    try:
        return json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
