"""Uploads an exported directory to a hub with Hugging Face's interface, in one commit.

huggingface_hub does it, and finds the token itself: the variable HF_TOKEN, or a login. The token is in no message.
"""

from __future__ import annotations

import re
from pathlib import Path

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
    return str(commit.repo_url)
