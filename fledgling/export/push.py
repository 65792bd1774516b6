"""Uploads an export to a hub with Hugging Face's interface, in one commit.

Only files that an export consists of are sent, and a directory with others is rejected: a repository may be public.
What an earlier version left in the repository and programs would load instead is deleted in the same commit.
huggingface_hub does it, and finds the token itself: the variable HF_TOKEN, or a login. The token is in no message.
"""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fledgling.config import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MARKERS = ("config.json", "adapter_config.json", "*.gguf", "*.onnx")  # one of them is in every exported directory
SINGLE = (".gguf", ".onnx", ".html")  # exports of one file, a GGUF with its Modelfile
LOADED = (  # what a program finds in a directory by its name and loads
    *("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"),
    *("chat_template.jinja", "*.safetensors", "*.safetensors.index.json"),
)
FILES = (
    *LOADED,
    "*.py",
    *(f"*{suffix}" for suffix in SINGLE),
    "*.Modelfile",
    "*.md",
    "LICENSE*",
    "NOTICE*",
    "*.png",
    "*.svg",
)
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
SHOWN = 3  # of the names of rejected files


def push_export(path: Path, repository: str, private: bool, endpoint: str | None) -> tuple[str, list[str]]:
    """Uploads an export; returns the address of the repository and the files that were deleted there.

    Args:
        path: a directory that an export wrote, or a file of it.

    Raises UserError for a path that is no export or has other files, a name that is none, a missing or rejected token,
    and a hub that cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfUriError

    names = list_files(path)
    folder = path if path.is_dir() else path.parent
    require_repository(repository)
    api = HfApi(endpoint=endpoint, library_name="fledgling")
    if not is_http_address(api.endpoint):
        place = "HF_ENDPOINT" if endpoint is None else "--endpoint"
        raise UserError(
            f"{place} is {api.endpoint[:80]!r}: expected an address such as https://HOST or http://HOST:PORT"
        )
    with name_failures(api):
        with suppress(HfUriError):  # it exists, the token may make none, and the address is of another hub
            api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        stale = find_stale(api.list_repo_files(repository), names)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            allow_patterns=[glob.escape(name) for name in names],
            delete_patterns=[glob.escape(name) for name in stale] or None,
            commit_message=f"Upload of {path.resolve().name} by fledgling",
        )
    return str(commit.repo_url), stale


def list_files(path: Path) -> list[str]:
    """Returns the names of an export's files. Raises UserError for a path that is none, or has others."""
    if path.is_file() and path.suffix in SINGLE:
        modelfile = path.with_suffix(".Modelfile")
        return [path.name, *([modelfile.name] if path.suffix == ".gguf" and modelfile.is_file() else [])]
    if not path.is_dir() or not any(any(path.glob(marker)) for marker in MARKERS):
        raise UserError(
            f"{path} is nothing that `fledgling export` wrote: expected a directory with one of {', '.join(MARKERS)}, "
            f"or a file that ends in {', '.join(SINGLE)}"
        )
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    others = [entry.name for entry in entries if entry.is_dir() or not matches(entry.name, FILES)]
    if others:
        more = f" and {len(others) - SHOWN:,} more" if len(others) > SHOWN else ""
        raise UserError(
            f"{path} has files that no export writes, which would be published: {', '.join(others[:SHOWN])}{more}; "
            "push a directory with the export alone, or the .gguf, .onnx or .html file by itself"
        )
    return [entry.name for entry in entries]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Returns whether a file's name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def find_stale(remote: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the files of a repository that would be loaded in the place of, or with, a model that is pushed there."""
    if not any(matches(name, ("config.json", "adapter_config.json")) for name in names):
        return []  # a GGUF or ONNX file: it is loaded by its name, and others may lie next to it
    return sorted(name for name in remote if "/" not in name and matches(name, LOADED) and name not in names)


def require_repository(repository: str) -> None:
    """Raises UserError unless it is OWNER/NAME as a hub takes it."""
    name = repository.rpartition("/")[2]
    if not REPOSITORY.fullmatch(repository) or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
        raise UserError(f"the repository is {repository[:80]!r}; expected OWNER/NAME, of letters, digits, -, _ and .")


@contextmanager
def name_failures(api: HfApi) -> Iterator[None]:
    """Makes UserErrors of what huggingface_hub raises."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError("there is no token for the hub; set HF_TOKEN, or log in with `hf auth login`") from None
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set, so nothing is sent; unset it to push") from None
    except UnicodeError:
        raise UserError("the token (HF_TOKEN) has characters that no token has; copy it again") from None
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        reason = {401: "the token is missing or wrong (HF_TOKEN)", 403: "the token may not write there (HF_TOKEN)"}
        raise UserError(f"{api.endpoint} rejected the upload: {reason.get(code or 0, f'HTTP {code}')}") from None
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"{api.endpoint} cannot be reached or did not answer: {type(error).__name__}") from None
    except RuntimeError as error:  # weights that could not be sent, after huggingface_hub's own retries
        print(file=sys.stderr)  # after its progress bar
        response = getattr(error.__cause__, "response", None)
        cause = type(error.__cause__).__name__ if response is None else f"HTTP {response.status_code}"
        failure = f"{' '.join(str(error).split())[:150]} ({cause})"
        raise UserError(
            f"{api.endpoint} did not take the upload: {failure}; nothing was committed, push again"
        ) from None


def is_http_address(text: str) -> bool:
    """Returns whether a text is an http or https address with a host, and a port that is one, if any."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
