"""`fledgling tokenizer`: trains a tokenizer, compares it with GPT-2's, and shows the pieces of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from fledgling.cli.options import Json
from fledgling.config import TokenizerConfig, UserError

app = App(name="tokenizer", help="Train, evaluate and show a tokenizer.")
DEFAULTS = TokenizerConfig()


@app.command
def train(
    sources: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    /,
    *,
    out: Path = Path("tokenizer"),
    vocab_size: int = 32768,
    max_digits: int = DEFAULTS.max_digits,
    letter_tokens: bool = DEFAULTS.letter_tokens,
    max_characters: int = DEFAULTS.max_characters,
    trainer: str = "auto",
    data_dir: Path | None = None,
    as_json: Json = False,
) -> None:
    """Train a tokenizer and write OUT/tokenizer.json and OUT/training.json.

    Parameters
    ----------
    sources
        "embedded" (default: the text of the installed Python), or files and folders, here or under the data
        root: .txt .md .jsonl .parquet. They are read in turn, up to `max_characters`.
    out
        Directory to write.
    vocab_size
        All tokens, with special tokens.
    max_digits
        Longest group of digits in one token: 1, 2 or 3.
    letter_tokens
        Make every letter with a space before it one token.
    max_characters
        Characters after which reading stops.
    trainer
        auto, ffbpe or tokenizers; the result is the same.
    data_dir
        The data root; else FLEDGLING_DATA, else ~/.cache/fledgling.
    """
    from fledgling.corpora.prepare import read_training_texts
    from fledgling.corpora.trained_tokenizer import save_trained_tokenizer
    from fledgling.record.outside import require_no_part_of_run
    from fledgling.text.tokenizer import Tokenizer

    require_no_part_of_run(out)
    sources = sources or ("embedded",)
    with Console(stderr=True).status("reading") as status:

        def show_progress(characters: int) -> None:
            status.update(f"training a tokenizer of {vocab_size:,} entries: {characters / 1e6:,.0f} M characters")

        trained = Tokenizer.train(
            read_training_texts(sources, data_dir, status.update),
            vocab_size,
            max_digits=max_digits,
            letter_tokens=letter_tokens,
            max_characters=max_characters,
            trainer=trainer,
            progress=show_progress,
        )
    file, facts = save_trained_tokenizer(trained, out, {"sources": list(sources)})
    if as_json:
        print(json.dumps({"path": str(file), **facts}, indent=2))
    else:
        print(f"{file}: {trained.vocab_size:,} entries from {facts['characters']:,} characters")
        print(f"{facts['seconds']:.1f} s with {facts['trainer']}, reading included")


@app.command(name="eval")
def evaluate(
    tokenizer: Path,
    texts: Annotated[tuple[Path, ...], Parameter(show_default=False)] = (),
    /,
    *,
    data_dir: Path | None = None,
    as_json: Json = False,
) -> None:
    """Print bytes per token for several kinds of text, compared with GPT-2's tokenizer.

    Parameters
    ----------
    tokenizer
        A tokenizer.json, or a directory with one (OUT of `train`, RUN/tokenizer, a checkpoint).
    texts
        More text files to measure.
    data_dir
        The data root (GPT-2's tokenizer, the Declaration of Human Rights); default: FLEDGLING_DATA.
    """
    from fledgling.files import resolve_data_root
    from fledgling.text.compression import compare_bytes_per_token, read_udhr
    from fledgling.text.gpt2 import load_gpt2_tokenizer
    from fledgling.text.sample_texts import SAMPLE_TEXTS
    from fledgling.text.tokenizer import Tokenizer, read_training_info

    tokenizers = {"fledgling": Tokenizer.load(tokenizer)}
    folder = resolve_data_root(data_dir) / "tokenizers"
    if gpt2 := load_gpt2_tokenizer(folder / "gpt2"):
        tokenizers["gpt2"] = gpt2
    skipped = None if gpt2 else f"GPT-2 left out: no encoder.json and vocab.bpe in {folder / 'gpt2'}"
    samples = SAMPLE_TEXTS | read_udhr(folder / "udhr2.zip") | {str(path): _read_file(path) for path in texts}
    rows = compare_bytes_per_token(tokenizers, samples)
    training, vocab_size = read_training_info(tokenizer), tokenizers["fledgling"].vocab_size
    if as_json:
        result = {"vocab_size": vocab_size, "seconds": training.get("seconds"), "bytes_per_token": rows}
        print(json.dumps(result | {"left_out": skipped}, indent=2, ensure_ascii=False))
        return
    width = max(len(row["kind"]) for row in rows)
    print(f"{'bytes per token':<{width}} {'bytes':>11} {'fledgling':>9} {'GPT-2' if gpt2 else '':>6}".rstrip())
    for row in rows:
        gpt2_column = f"{row['gpt2']:6.2f}" if gpt2 else ""
        print(f"{row['kind']:<{width}} {row['bytes']:>11,} {row['fledgling']:9.2f} {gpt2_column}".rstrip())
    time = f", trained in {training['seconds']} s" if "seconds" in training else ""
    print(f"fledgling: {vocab_size:,} entries{time}")
    if skipped:
        print(skipped)


@app.command
def show(tokenizer: Path, text: str, /, *, as_json: Json = False) -> None:
    """Print the pieces of a text, with their ids.

    Parameters
    ----------
    tokenizer
        A tokenizer.json, or a directory with one.
    text
        The text; names of special tokens in it are ordinary text.
    """
    from fledgling.text.tokenizer import Tokenizer

    loaded = Tokenizer.load(tokenizer)
    ids = loaded.encode(text)
    pieces = [loaded.decode_bytes([index]) for index in ids]
    if as_json:
        tokens = [
            {"id": index, "bytes": list(piece), "text": piece.decode(errors="replace")}
            for index, piece in zip(ids, pieces, strict=True)
        ]
        print(json.dumps(tokens, ensure_ascii=False))
        return
    print("|".join(repr(piece.decode(errors="backslashreplace"))[1:-1] for piece in pieces))
    print(" ".join(map(str, ids)))
    size = len(text.encode(errors="replace"))
    print(f"{len(ids)} tokens, {size} bytes, {size / max(1, len(ids)):.2f} bytes per token")


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected a text file") from None
