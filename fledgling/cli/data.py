"""`fledgling data`: shows, downloads and prepares training text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from fledgling.cli.inspect import inspect
from fledgling.cli.options import DataDir, Json, Overrides, print_to_stderr
from fledgling.cli.overlap import overlap
from fledgling.config import UserError, load_recipe
from fledgling.record.jsonl import format_bytes

app = App(name="data", help="Show, fetch and prepare training text.")


@app.command
def info(
    source: str | None = None,
    /,
    *,
    column: str | None = None,
    compress: Annotated[bool, Parameter(negative=())] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show the public sets and which are downloaded; or, for a source, its documents, bytes and split.

    Parameters
    ----------
    source
        "embedded", the name of a public set that was fetched, a file or a folder.
    column
        The column of JSON lines or parquet that holds the text.
    compress
        Also measure the bits per byte of xz, zstd and PPMd on the held-out text, given the rest (slow).
    """
    if source is None:
        _show_sets(data_dir, as_json)
        return
    stats = _measure_source(source, column, compress, data_dir)
    if as_json:
        print(json.dumps(stats, indent=2))
        return
    for key, value in stats.items():
        print(f"{key.replace('_', ' '):<22} {_format_value(value)}")


@app.command
def fetch(
    name: str,
    /,
    *,
    shards: Annotated[int | None, Parameter(help="Number of files; default: one, but all files of a task.")] = None,
    endpoint: Annotated[str | None, Parameter(help="URL of a mirror of the hub; else HF_ENDPOINT.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Download files of a public set, checked against the hub's checksums.

    A broken download continues where it stopped; files that are complete are not downloaded again.

    Parameters
    ----------
    name
        A name from `fledgling data info`; core is the bundle of `eval core`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from fledgling.corpora import core_bundle
    from fledgling.corpora.public_sets import fetch_public_set as fetch_set
    from fledgling.corpora.public_sets import get_public_set

    if shards is None and name != core_bundle.CORE_BUNDLE.name and not get_public_set(name).is_task:
        shards = 1
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
    tasks: dict[str, Any] = {}

    def show_progress(file: str, received: int, size: int) -> None:
        if file not in tasks:
            bar.start()  # only when there is something to show; a second start has no effect
            tasks[file] = bar.add_task(file, total=size)
        bar.update(tasks[file], completed=received)

    try:
        if name == core_bundle.CORE_BUNDLE.name:
            folder, changed = core_bundle.fetch_core_bundle(data_dir, endpoint, show_progress)
            paths = [folder]
        else:
            paths, changed = fetch_set(name, data_dir, shards, endpoint, show_progress), []
    finally:
        if tasks:
            bar.stop()
    if changed:
        print(f"not the published files: {', '.join(changed)}; scores will differ", file=sys.stderr)
    for path in paths:
        print(path)


def _show_sets(data_dir: Path | None, as_json: bool) -> None:
    from fledgling.corpora.public_sets import list_public_sets
    from fledgling.files import resolve_data_root

    root, sets = resolve_data_root(data_dir), list_public_sets(data_dir)
    if as_json:
        print(json.dumps({"root": str(root), "sets": sets}, indent=2))
        return
    print(f"data root  {root}\n")
    for entry in sets:
        local = f"{entry['files']} files, {format_bytes(entry['bytes'])} here" if entry["files"] else "not fetched"
        print(f"{entry['name']:<17} {local}\n  {entry['description']}\n  {entry['size']}; {entry['license']}")
        print(f"  {entry['repository']} at {entry['revision'][:12]}")


def _measure_source(source: str, column: str | None, compress: bool, data_dir: Path | None) -> dict[str, Any]:
    from fledgling.corpora.document import split_held_out, summarize_split
    from fledgling.corpora.prepare import EMBEDDED, find_source, read_source
    from fledgling.corpora.readers import SkippedDocuments, list_source
    from fledgling.text.compression import measure_compressed_bpb

    skipped = SkippedDocuments()
    documents = list(read_source(source, data_dir, column, skipped))
    if skipped.total:
        print(skipped, file=sys.stderr)
    if source != EMBEDDED and (path := find_source(source, data_dir)).is_dir():
        print(list_source(path).describe(), file=sys.stderr)
    training, validation = split_held_out(documents)
    stats = {**summarize_split(documents, training, validation), "skipped": skipped.total}
    if compress:
        texts, held_out = ([document.text for document in part] for part in (training, validation))
        stats["bits_per_byte"] = measure_compressed_bpb(texts, held_out, print_to_stderr)
    return stats


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_format_value(part)}" for key, part in value.items() if part != "")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else str(value)


@app.command
def prepare(
    recipe: str = "quickstart",
    /,
    *,
    workers: int = 0,
    overrides: Overrides = (),
) -> None:
    """Train a recipe's tokenizer and write the token shards of its documents, so that training starts at once.

    If it is stopped, run it again to resume with the unfinished shards.

    Parameters
    ----------
    recipe
        A recipe's name, a TOML file or a run directory.
    workers
        Processes that tokenize a source too large for memory; default: one a core.
    """
    if workers < 0:
        raise UserError(f"--workers is {workers}; expected at least 1, or 0 for one a core")
    chosen = load_recipe(recipe, overrides)
    from fledgling.record.run_lock import hold_lock
    from fledgling.train.data_preparer import DataPreparer, list_document_sources

    preparer = DataPreparer(chosen, Path(chosen.run.out), print_to_stderr, workers, show_progress=True)
    sources = list_document_sources(chosen)
    preparer.require_sources(sources, ())
    with hold_lock(chosen.run.out, "data prepare", print_to_stderr):
        tokenizer = preparer.load_or_train_tokenizer()
        corpora = {source: preparer.documents.prepare_shards(source, tokenizer) for source in sources}
    for source, corpus in corpora.items():
        for name, shards in (("training", corpus.train), ("held out", corpus.held_out)):
            documents, tokens = sum(map(len, shards)), sum(int(s.offsets[-1] - s.offsets[0]) for s in shards)
            print(f"{source}: {name}, {len(shards):,} shards, {documents:,} documents, {tokens:,} tokens")


app.command(inspect)
app.command(overlap)
