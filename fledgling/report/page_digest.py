"""The digest that a page has of itself in its footer, by which an edit is found. It has no key, as a seal has none."""

import hashlib
import re

NO_DIGEST = 'data-digest=""'
_DIGEST = re.compile(r'data-digest="([0-9a-f]*)"')


def add_digest(page: str) -> str:
    """Returns a page that has `NO_DIGEST` in its footer with its digest instead."""
    return page.replace(NO_DIGEST, f'data-digest="{_hash(page)}"', 1)


def is_as_written(page: str) -> bool:
    """Returns whether a page is what its digest says; not one without a digest."""
    found = _DIGEST.search(page)
    return found is not None and found[1] == _hash(page)


def _hash(page: str) -> str:
    """Returns the SHA-256 of a page without the digest in it."""
    return hashlib.sha256(_DIGEST.sub(NO_DIGEST, page, count=1).encode("utf-8", "replace")).hexdigest()
