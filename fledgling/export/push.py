"""Uploads an exported directory to a hub with Hugging Face's interface, in one commit.

huggingface_hub does it, and finds the token itself: the variable HF_TOKEN, or a login. The token is in no message.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from fledgling.config import UserError

MARKERS = ("config.json", "adapter_config.json", "*.gguf", "*.onnx")  # one of them is in every export
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def push_directory(directory: Path, repository: str, private: bool, endpoint: str | None) -> str:
    """Uploads all files of a directory but hidden ones, and returns the address of the repository.

    Raises UserError for a directory that is no export, a name that is none, a missing or rejected token, and a hub that
    cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

    if not directory.is_dir() or not any(any(directory.glob(marker)) for marker in MARKERS):
        raise UserError(
            f"{directory} is no directory that `fledgling export` wrote: it has none of {', '.join(MARKERS)}"
        )
    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"the repository is {repository[:80]!r}; expected OWNER/NAME")
    api = HfApi(endpoint=endpoint, library_name="fledgling")
    if not is_http_address(api.endpoint):
        place = "HF_ENDPOINT" if endpoint is None else "--endpoint"
        raise UserError(
            f"{place} is {api.endpoint[:80]!r}: expected an address such as https://HOST or http://HOST:PORT"
        )
    try:
        api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=str(directory),
            ignore_patterns=[".*", "*/.*"],
            commit_message=f"Upload of {directory.resolve().name} by fledgling",
        )
    except LocalTokenNotFoundError:
        raise UserError("there is no token for the hub; set HF_TOKEN, or log in with `hf auth login`") from None
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
        reason = f"{' '.join(str(error).split())[:150]} ({cause})"
        raise UserError(
            f"{api.endpoint} did not take the upload: {reason}; nothing was committed, push again"
        ) from None
    return str(commit.repo_url)


def is_http_address(text: str) -> bool:
    """Returns whether a text is an http or https address with a host, and a port that is one, if any."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
