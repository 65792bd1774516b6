"""A page of `fledgling export html` in headless Chromium, offline: its size, when it can answer, tokens a second."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fledgling.config import UserError

QUESTION = "Tell me about {}."
TOPICS = ("the sea", "numbers", "Python", "yourself", "letters", "words", "a list", "files")
SETTINGS = {"temperature": 1.5, "top_k": 0, "max_tokens": 200}  # so hot that an answer does not end soon


@contextmanager
def launch_chromium() -> Iterator[Any]:
    """Yields a headless Chromium for the length of a block. Raises UserError where it or playwright is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError('playwright is not installed; pip install "fledgling[browser]"') from None
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise UserError("no chromium on this machine")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


def measure_page(page: Path, answers: int = 8) -> dict[str, Any]:
    """Returns the bytes of a page, the seconds until it can answer, and of each answer its tokens and their speed."""
    with launch_chromium() as chromium:
        opened = chromium.new_context(offline=True).new_page()
        start = time.perf_counter()
        opened.goto(page.resolve().as_uri())
        opened.locator("#status", has_text="inside this page").wait_for(timeout=120_000)
        ready = time.perf_counter() - start
        opened.click("#settings-button")
        for name, value in SETTINGS.items():
            opened.fill(f"#{name}", str(value))
        speeds = [_ask(opened, number) for number in range(answers)]
        version = chromium.version
    return {"chromium": version, "bytes": page.stat().st_size, "ready_seconds": ready, "answers": speeds}


def _ask(page: Any, number: int) -> tuple[int, float]:
    """Returns the tokens of an answer in a new conversation, and its tokens a second as the page shows them."""
    page.click("#new")
    page.fill("#seed", str(number))
    page.fill("#message", QUESTION.format(TOPICS[number % len(TOPICS)]))
    page.press("#message", "Enter")
    page.locator("#status", has_text="Answer complete.").wait_for(timeout=300_000)
    shown = page.locator(".speed").inner_text()
    found = re.fullmatch(r"(\d+) tokens, (\d+) a second", shown)
    assert found, shown
    return int(found[1]), float(found[2])


def format_page(values: dict[str, Any]) -> str:
    """Returns the measurement as lines of text."""
    answers = values["answers"]
    tokens, seconds = sum(count for count, _ in answers), sum(count / speed for count, speed in answers)
    slowest = min(speed for _, speed in answers)
    return (
        f"{values['bytes']:,} bytes, ready after {values['ready_seconds']:.2f} s in Chromium {values['chromium']}\n"
        f"{tokens} tokens in {len(answers)} answers, {tokens / seconds:.0f} a second; slowest answer {slowest:.0f}"
    )
