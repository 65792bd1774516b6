"""Public data sets by name: a table of repositories on the Hugging Face hub, and a resumable, checked download.

A file counts as downloaded only when its bytes have the hash that the hub records for the pinned commit. It grows
under the name `FILE.part`, so that a broken download continues where it stopped (the hub's own client starts again in
a new process); then it is checked and renamed. Checked files are listed in DATA/public.lock.json. Start with
`fetch_public_set`. `readers.read_documents(DATA / name)` reads what was downloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fledgling.config import UserError, did_you_mean
from fledgling.files import resolve_data_root
from fledgling.record.durable import make_directory, replace_file, write_file
from fledgling.record.jsonl import format_bytes

LOCK_FILE = "public.lock.json"
HUB_URL = "https://huggingface.co"
CHUNK_BYTES = 1 << 20
TIMEOUT = 30.0  # seconds without data
MAX_ATTEMPTS = 4  # connections for one file in one call; each continues where the last one broke off

DownloadProgress = Callable[[str, int, int], None]  # (file, bytes so far, bytes in all)


@dataclass(frozen=True)
class PublicSet:
    """A set on the hub. `revision` is a commit, or "main": then the first fetch pins the current commit."""

    name: str
    repository: str
    revision: str
    folder: str  # in the repository; "" for its root
    pattern: str  # of the file names
    column: str  # "text" for documents, "messages" for conversations; any other for the rows of a task
    license: str  # as the publisher states it
    size: str  # compressed, approximate
    description: str

    @property
    def is_task(self) -> bool:
        """Whether the files are the splits of a task, so that only all of them are useful."""
        return self.column not in ("text", "messages")


# A commit is pinned here only if several independent public projects pin the same one.
PUBLIC_SETS = {
    entry.name: entry
    for entry in (
        PublicSet(
            "fineweb-edu", "HuggingFaceFW/fineweb-edu", "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
            "sample/10BT", "*.parquet", "text", "ODC-By 1.0", "28.5 GB in 14 files",
            "educational web pages, the sample of 10 billion tokens",
        ),
        PublicSet(
            "fineweb-edu-100b", "karpathy/fineweb-edu-100b-shuffle", "main",
            "", "shard_*.parquet", "text", "ODC-By 1.0", "100 MB each of 1,823 files",
            "the sample of 100 billion tokens, shuffled, in small files",
        ),
        PublicSet(
            "climbmix", "karpathy/climbmix-400b-shuffle", "915333b4f8b8684f39aeaafea600fea6f43fb703",
            "", "shard_*.parquet", "text", "CC BY-NC 4.0 (of the original, nvidia/Nemotron-ClimbMix)",
            "90 MB each of 6,543 files", "web text of 400 billion tokens, shuffled, in small files",
        ),
        PublicSet(
            "tinystories", "roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
            "data", "train-*.parquet", "text", "CDLA-Sharing 1.0", "1 GB in 4 files",
            "short stories in the words of small children",
        ),
        PublicSet(
            "wikitext-103", "Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3",
            "wikitext-103-raw-v1", "train-*.parquet", "text", "CC BY-SA 3.0 and GFDL", "0.3 GB in 2 files",
            "good and featured articles of Wikipedia, one line a row",
        ),
        PublicSet(
            "smoltalk", "HuggingFaceTB/smoltalk", "5feaf2fd3ffca7c237fc38d1861bc30365d48ffa",
            "data/all", "train-*.parquet", "messages", "Apache-2.0, parts have their own", "2 GB in 9 files",
            "a million conversations for supervised fine-tuning",
        ),
        PublicSet(
            "smol-smoltalk", "HuggingFaceTB/smol-smoltalk", "f73fe857d519ff6ac5af2ea67c4d3834da7b8bcc",
            "data", "train-*.parquet", "messages", "Apache-2.0, parts have their own", "1 GB in 4 files",
            "the shorter and simpler conversations of smoltalk, for small models",
        ),
        PublicSet(
            "arc_easy", "allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453",
            "ARC-Easy", "*.parquet", "question", "CC BY-SA 4.0", "0.8 MB in 3 files",
            "science questions of grade school, multiple choice: train, validation, test",
        ),
        PublicSet(
            "arc_challenge", "allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453",
            "ARC-Challenge", "*.parquet", "question", "CC BY-SA 4.0", "0.5 MB in 3 files",
            "those of them that word statistics do not answer: train, validation, test",
        ),
        PublicSet(
            "mmlu", "cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe",
            "all", "*.parquet", "question", "MIT", "55 MB in 4 files",
            "multiple choice in 57 subjects: auxiliary training set, dev, validation, test",
        ),
        PublicSet(
            "gsm8k", "openai/gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee",
            "main", "*.parquet", "question", "MIT", "3 MB in 2 files",
            "word problems of grade school with worked solutions: train, test",
        ),
        PublicSet(
            "humaneval", "openai/openai_humaneval", "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
            "openai_humaneval", "*.parquet", "prompt", "MIT", "0.1 MB in 1 file",
            "functions to write, with their tests: for evaluation only",
        ),
    )
}  # fmt: skip


# One archive, not a repository of the hub: `core_bundle.py` fetches it.
BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
CORE_BUNDLE = PublicSet(
    "core", BUNDLE_URL, "main", "eval_bundle", "*", "", "of each task its own, some share-alike",
    "162 MB in one archive", "the 22 tasks of CORE (DCLM), for `eval core`",
)  # fmt: skip


def get_public_set(name: str) -> PublicSet:
    """Returns a set by name. Raises UserError, with the known names."""
    if name not in PUBLIC_SETS:
        hint = did_you_mean(name, PUBLIC_SETS) or f"; expected one of {', '.join(PUBLIC_SETS)}"
        raise UserError(f'no public set "{name}"{hint}')
    return PUBLIC_SETS[name]


def read_lock_file(root: Path) -> dict[str, Any]:
    """Returns what was pinned and checked so far: name -> {repository, revision, listing, files}."""
    path = root / LOCK_FILE
    if not path.exists():
        return {}
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path}: corrupt; delete it: the next fetch checks the files again") from None
    return lock


def count_downloaded(name: str, data_dir: str | Path | None = None) -> tuple[int, int]:
    """Returns (files, bytes) of a set that are in the data folder and were checked."""
    root = resolve_data_root(data_dir)
    files = read_lock_file(root).get(name, {}).get("files", {})
    sizes = [entry["size"] for file, entry in files.items() if _is_downloaded(root / name / file, entry)]
    return len(sizes), sum(sizes)


def list_public_sets(data_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """Returns the fields of every set, with its pinned revision and the files and bytes that were downloaded."""
    lock = read_lock_file(resolve_data_root(data_dir))
    entries = []
    for public_set in (*PUBLIC_SETS.values(), CORE_BUNDLE):
        revision = lock.get(public_set.name, {}).get("revision", public_set.revision)
        files, size = count_downloaded(public_set.name, data_dir)
        entries.append({**asdict(public_set), "revision": revision, "files": files, "bytes": size})
    return entries


def fetch_public_set(
    name: str,
    data_dir: str | Path | None = None,
    max_files: int | None = None,
    endpoint: str | None = None,
    progress: DownloadProgress | None = None,
) -> list[Path]:
    """Downloads the files of a set that are missing, and returns the paths of all (or the first `max_files`).

    Files that were checked before are not checked again, and need no connection to the hub.

    Args:
        max_files: downloads only the first files, in order of paths; None for all.
        endpoint: URL of the hub; None for the variable HF_ENDPOINT, or else huggingface.co.
        progress: is called with each file, its bytes so far and its size.

    Raises:
        UserError: if the hub cannot be reached, if a file does not have the recorded hash (it is then removed), or if
            the disk is full.
    """
    public_set = get_public_set(name)
    root = resolve_data_root(data_dir)
    if max_files is not None and max_files < 1:
        raise UserError(f"--shards is {max_files}; expected at least 1")
    hub = (endpoint or os.environ.get("HF_ENDPOINT") or HUB_URL).rstrip("/")
    lock = read_lock_file(root)
    entry: dict[str, Any] = lock.get(name) or {}
    if not entry or (public_set.revision != "main" and entry["revision"] != public_set.revision):
        entry = {**_list_files(public_set, hub), "files": {}}
        lock[name] = entry
        write_lock_file(root, lock)
    paths = []
    for file in entry["listing"][:max_files]:
        path = root / name / file["path"]
        if not _is_downloaded(path, entry["files"].get(file["path"])):
            url = f"{hub}/datasets/{public_set.repository}/resolve/{entry['revision']}/{quote(file['path'])}"
            download_file(url, path, file, progress)
            lock = read_lock_file(root)  # another process may have fetched another set meanwhile
            entry = lock.setdefault(name, entry)
            entry["files"][file["path"]] = {key: file[key] for key in ("size", "hash")}
            write_lock_file(root, lock)
        elif progress:
            progress(file["path"], file["size"], file["size"])
        paths.append(path)
    return paths


def _is_downloaded(path: Path, checked: dict[str, Any] | None) -> bool:
    return checked is not None and path.is_file() and path.stat().st_size == checked["size"]


def write_lock_file(root: Path, lock: dict[str, Any]) -> None:
    """Replaces the lock file in one rename."""
    with _report_disk_errors(root):
        write_file(root / LOCK_FILE, (json.dumps(lock, indent=1, sort_keys=True) + "\n").encode())


@contextlib.contextmanager
def _report_disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free space or use --data-dir"
        ) from None


def _list_files(public_set: PublicSet, hub: str) -> dict[str, Any]:
    """Returns the set's files at its revision, with sizes and hashes, sorted by path, as the hub lists them."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=hub, token=False)
    where = f"{public_set.repository} at {public_set.revision[:12]}"
    try:
        commit = api.dataset_info(public_set.repository, revision=public_set.revision, timeout=TIMEOUT).sha
        tree = api.list_repo_tree(
            public_set.repository, public_set.folder or None, revision=commit, repo_type="dataset", recursive=False
        )
        files = [item for item in tree if isinstance(item, RepoFile)]
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        raise UserError(f"{public_set.name}: {hub} has no {where} (status {status}); check the name") from None
    except (OfflineModeIsEnabled, OSError, _http_error()) as error:
        raise _offline_error(public_set.name, hub, error) from None
    listing: list[dict[str, Any]] = [
        {
            "path": item.path,
            "size": item.size,
            "hash": f"sha256:{item.lfs.sha256}" if item.lfs else f"git:{item.blob_id}",
        }
        for item in files
        if fnmatch(Path(item.path).name, public_set.pattern)
    ]
    if not listing:
        raise UserError(f"{public_set.name}: no {public_set.pattern} in {where}; the set has changed, update fledgling")
    listing.sort(key=lambda file: file["path"])
    return {**asdict(public_set), "revision": commit, "listing": listing}


def _http_error() -> type[Exception]:
    """Returns the base class of the network errors that the hub's client raises."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__[1:] if base.__name__ in ("HTTPError", "RequestException"))


def _offline_error(name: str, hub: str, error: BaseException) -> UserError:
    reason = " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split())[:120]
    return UserError(f"{name}: cannot reach {hub} ({reason}); check the network, or use the embedded corpus")


# ---- one file ------------------------------------------------------------------------------------


def download_file(url: str, path: Path, file: dict[str, Any], progress: DownloadProgress | None) -> None:
    """Downloads one file to `path`, continuing `path.part` if it exists, and checks it.

    `file` is {"path", "size", "hash"}; an empty hash is not checked, because it is not known yet. Raises UserError if
    the download fails or the hash differs; a file with another hash is removed.
    """
    part = path.with_name(path.name + ".part")
    with _report_disk_errors(path.parent):
        make_directory(path.parent)
        if path.exists() and not part.exists():
            path.replace(part)  # not checked yet: it is checked below
        if part.exists() and part.stat().st_size > file["size"]:
            part.unlink()
        size = part.stat().st_size if part.exists() else 0
        free = shutil.disk_usage(path.parent).free
    if free < file["size"] - size:
        need = format_bytes(file["size"] - size)
        raise UserError(f"{path.parent}: {need} needed, {format_bytes(free)} free; free some or use --data-dir")
    failure: BaseException | None = None
    for attempt in range(MAX_ATTEMPTS):
        if part.exists() and part.stat().st_size == file["size"]:
            break
        try:
            _resume_download(url, part, file, progress)
        except urllib.error.HTTPError as error:
            failure = error
            if error.code not in (408, 429) and error.code < 500:
                raise UserError(f"{url}: status {error.code}; expected the file, try later or another set") from None
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
            failure = error
        if attempt + 1 < MAX_ATTEMPTS and failure:
            time.sleep(0.2 * 2**attempt)
    size = part.stat().st_size if part.exists() else 0
    if size != file["size"]:
        if not size:
            raise _offline_error(path.name, url.split("/datasets/")[0], failure or EOFError("no bytes"))
        raise UserError(f"{path.name}: broken off at {size:,} of {file['size']:,} bytes; fetch again to continue")
    if file["hash"] and compute_hub_hash(part, file["hash"].split(":")[0]) != file["hash"]:
        part.unlink()
        raise UserError(
            f"{path}: its bytes are not those the hub recorded ({file['hash'][:19]}...); removed, fetch again"
        )
    with _report_disk_errors(path):
        replace_file(part, path)  # flushed: a set is known as downloaded by the size of its files alone


def _resume_download(url: str, part: Path, file: dict[str, Any], progress: DownloadProgress | None) -> None:
    """Reads from the hub into `part`, from the byte where `part` ends, until the connection ends."""
    size = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "fledgling", "Accept-Encoding": "identity"}
    if size:
        headers["Range"] = f"bytes={size}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        if size and response.status != 206:  # the server ignores ranges: start again
            size = 0
        with _report_disk_errors(part):
            handle = part.open("ab" if size else "wb")
        with handle:
            while chunk := response.read(CHUNK_BYTES):
                with _report_disk_errors(part):
                    handle.write(chunk)
                size += len(chunk)
                if progress:
                    progress(file["path"], size, file["size"])


def compute_hub_hash(path: Path, kind: str) -> str:
    """Returns "sha256:..." of a file, or "git:...", the blob id that git gives a file outside large-file storage."""
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"
