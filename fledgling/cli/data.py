"""`fledgling data`: what training text there is, and how to get more of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from fledgling.cli.options import Json, Overrides
from fledgling.cli.overlap import overlap
from fledgling.config import UserError, load_recipe

app = App(name="data", help="Look at, fetch and prepare training text.")

DataDir = Annotated[
    Path | None,
    Parameter(name="--data-dir", help="Where data lies; else FLEDGLING_DATA, else ~/.cache/fledgling."),
]


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
    """Without a source: the public sets and what of them is here. With one: its documents, bytes and split.

    Parameters
    ----------
    source
        "embedded", the name of a public set that was fetched, a file or a folder.
    column
        The column of JSON lines or parquet that holds the text.
    compress
        Also measure what xz and zstd make of the held-out text once they have seen the rest (slow).
    """
    found = _describe_sets(data_dir) if source is None else _describe_source(source, column, compress, data_dir)
    if as_json:
        print(json.dumps(found, indent=2))
    elif source is None:
        print(f"data root  {found['root']}\n")
        for entry in found["sets"]:
            here = f"{entry['files']} files, {entry['bytes'] / 1e9:.2f} GB here" if entry["files"] else "not fetched"
            print(f"{entry['name']:<17} {here}\n  {entry['description']}\n  {entry['size']}; {entry['license']}")
            print(f"  {entry['repository']} at {entry['revision'][:12]}")
    else:
        for key, value in found.items():
            print(f"{key.replace('_', ' '):<22} {_format_value(value)}")


@app.command
def fetch(
    name: str,
    /,
    *,
    shards: Annotated[int | None, Parameter(help="How many of its files; else one, but all of a task's.")] = None,
    endpoint: Annotated[str | None, Parameter(help="A mirror of the hub; else HF_ENDPOINT.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Download files of a public set, resumed where they broke off and checked against the hub's checksums.

    Files that are already here are not fetched again.

    Parameters
    ----------
    name
        A name that `fledgling data info` lists; core is the bundle of `eval core`.
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

    def told(file: str, there: int, size: int) -> None:
        if file not in tasks:
            bar.start()  # not before there is something to show; starting twice does nothing
            tasks[file] = bar.add_task(file, total=size)
        bar.update(tasks[file], completed=there)

    try:
        if name == core_bundle.CORE_BUNDLE.name:
            folder, different = core_bundle.fetch_core_bundle(data_dir, endpoint, told)
            paths = [folder]
        else:
            paths, different = fetch_set(name, data_dir, shards, endpoint, told), []
    finally:
        if tasks:
            bar.stop()
    if different:
        print(f"not the published files: {', '.join(different)}; scores will differ", file=sys.stderr)
    for path in paths:
        print(path)


def _describe_sets(data_dir: Path | None) -> dict[str, Any]:
    """Return the table of public sets with what lies in the data root."""
    from dataclasses import asdict

    from fledgling.corpora.core_bundle import CORE_BUNDLE
    from fledgling.corpora.public_sets import PUBLIC_SETS, count_downloaded, read_lock_file
    from fledgling.files import resolve_data_root

    root = resolve_data_root(data_dir)
    lock = read_lock_file(root)
    sets = []
    for name, entry in {**PUBLIC_SETS, CORE_BUNDLE.name: CORE_BUNDLE}.items():
        files, size = count_downloaded(name, data_dir)
        revision = lock.get(name, {}).get("revision", entry.revision)
        sets.append({**asdict(entry), "revision": revision, "files": files, "bytes": size})
    return {"root": str(root), "sets": sets}


def _describe_source(source: str, column: str | None, compress: bool, data_dir: Path | None) -> dict[str, Any]:
    """Return the documents and bytes of one source, by kind and by split."""
    from fledgling.corpora.embedded import count_bytes_by_kind, harvest_embedded
    from fledgling.corpora.readers import SkippedDocuments, read_documents
    from fledgling.corpora.split import measure_compressed_bpb, measure_line_overlap, split_held_out
    from fledgling.files import resolve_data_root

    skipped = SkippedDocuments()
    if source == "embedded":
        found = harvest_embedded()
    else:
        fetched = resolve_data_root(data_dir) / source
        path = fetched if fetched.exists() and not Path(source).exists() else Path(source)
        found = list(read_documents(path, column, skipped=skipped))
    if skipped.total:
        print(skipped, file=sys.stderr)
    training, validation = split_held_out(found)
    result = {
        "documents": len(found),
        "bytes": count_bytes_by_kind(found),
        "training_bytes": sum(count_bytes_by_kind(training).values()),
        "validation_bytes": sum(count_bytes_by_kind(validation).values()),
        "validation_documents": len(validation),
        "line_overlap": measure_line_overlap(training, validation),
        "skipped": skipped.total,
    }
    if compress:
        result["bits_per_byte"] = measure_compressed_bpb(
            training, validation, progress=lambda text: print(text, file=sys.stderr)
        )
    return result


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

    Stopped, it goes on with the shards that are not finished.

    Parameters
    ----------
    recipe
        A recipe's name, a TOML file or a run directory.
    workers
        Processes that tokenize a corpus too large to be held in memory; else one a core.
    """
    if workers < 0:
        raise UserError(f"--workers is {workers}; expected at least 1, or 0 for one a core")
    chosen = load_recipe(recipe, overrides)
    from fledgling.train.prepare import DataPreparer, split_mixture

    preparer = DataPreparer(
        chosen, Path(chosen.run.out), lambda text: print(text, file=sys.stderr), workers, show_progress=True
    )
    mixtures = [chosen.stage_config(stage).mixture for stage in chosen.stages if chosen.stage_config(stage).mixture]
    sources = list(dict.fromkeys(name for mixture in mixtures for name in split_mixture(mixture).documents))
    preparer.require_sources(sources, ())
    tokenizer = preparer.load_or_train_tokenizer()
    for source in sources:
        corpus = preparer.document_shards(source, tokenizer)
        for name, shards in (("training", corpus.train), ("held out", corpus.held_out)):
            documents, tokens = sum(map(len, shards)), sum(int(s.offsets[-1] - s.offsets[0]) for s in shards)
            print(f"{source}: {name}, {len(shards):,} shards, {documents:,} documents, {tokens:,} tokens")


app.command(overlap)
