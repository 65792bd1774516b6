"""Many clients at once against a real server: python -m tests.campaigns.load CHECKPOINT --clients 64 --seconds 120

First every question is asked alone. Then the clients ask at random, streaming and not, with OpenAI's own client; then
some of them leave in mid-answer, read slowly, send bodies that are too large or no JSON. Asked of it: every answer is
the one its question gets alone and none is another's, every bad body gets its 4xx, a full queue its 429, the server's
memory stays flat, and /health answers all the while.

An answer that differs from the one alone is no broken promise where products are rounded (bf16): another batch rounds
otherwise, and a close call between two tokens may go the other way. It is counted; the answer to another question is
not forgiven.
"""

import argparse
import asyncio
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import openai

WORDS = ("apple", "river", "stone", "cloud", "tiger", "piano", "lemon", "coat", "train", "candle", "window", "garden")
QUESTIONS = [f"Spell the word {word}." for word in WORDS] + [f"What is {7 * n} plus {3 * n + 1}?" for n in range(1, 17)]
TOKENS = 48
PATIENCE = 30  # seconds that a client waits
HEALTH_LIMIT = 0.05  # seconds, of 99 in 100 answers of /health
GROWTH_LIMIT = 0.03  # of the resident memory, from the third quarter of the time to the last: under the same load


@dataclass
class Seen:
    """What happened, counted."""

    counts: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


@contextmanager
def server(checkpoint: str):
    """`fledgling serve` as a process of its own; gives its port and pid."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fledgling", "serve", checkpoint, "--port", "0", "--name", "any"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                threading.Thread(target=process.stdout.read, daemon=True).start()
                yield int(found[1]), process.pid
                return
        raise SystemExit("the server did not start")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def look(port: int, pid: int, seen: Seen, over: threading.Event) -> None:
    """Ask /health ten times a second, and read the server's resident memory once a second."""
    page, last = os.sysconf("SC_PAGE_SIZE"), 0.0
    while not over.wait(0.1):
        began = time.perf_counter()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
            connection.close()
        except (OSError, AssertionError) as problem:
            seen.problems.append(f"/health: {problem!r}")
        seen.health.append(time.perf_counter() - began)
        if time.monotonic() - last > 1:
            last = time.monotonic()
            with open(f"/proc/{pid}/statm") as file:
                seen.memory.append(int(file.read().split()[1]) * page)


# ---- clients -------------------------------------------------------------------------------------


async def answer(client: openai.AsyncOpenAI, question: str, stream: bool) -> str:
    """What the server says to a question, greedily."""
    asked = {"model": "any", "messages": [{"role": "user", "content": question}], "max_tokens": TOKENS}
    if not stream:
        found = await client.chat.completions.create(**asked, temperature=0)
        return found.choices[0].message.content or ""
    parts = await client.chat.completions.create(**asked, temperature=0, stream=True)
    return "".join([part.choices[0].delta.content or "" async for part in parts if part.choices])


async def ask(client: openai.AsyncOpenAI, alone: dict[str, str], chance: random.Random, seen: Seen) -> None:
    """One question; its answer is compared with what it gets alone."""
    question, stream = chance.choice(QUESTIONS), chance.random() < 0.5
    try:
        said = await answer(client, question, stream)
    except openai.RateLimitError:
        seen.counts["turned away (429)"] += 1
        await asyncio.sleep(0.2)
        return
    except openai.OpenAIError as problem:
        seen.problems.append(f"{question}: {problem!r}")
        return
    if said == alone[question]:
        seen.counts["answered as alone"] += 1
    elif said in alone.values():
        seen.problems.append(f"{question}: got another question's answer, {said!r}")
    else:
        seen.counts["answered, rounded otherwise"] += 1


def request(body: bytes, length: int | None = None) -> bytes:
    """A raw POST to the chat endpoint."""
    head = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        "Content-Type: application/json",
    )
    return "\r\n".join((*head, f"Content-Length: {length or len(body)}", "", "")).encode() + body


async def trouble(port: int, chance: random.Random, seen: Seen) -> None:
    """One client that leaves, reads slowly, or sends what nobody can read."""
    kind = chance.choice(("leaves", "reads slowly", "body too large", "malformed"))
    messages = [{"role": "user", "content": chance.choice(QUESTIONS)}]
    good = json.dumps({"model": "any", "messages": messages, "max_tokens": TOKENS, "stream": True}).encode()
    bad = chance.choice((b"{", b"[]", b"\xff\xfe", b'{"messages": 3}', b'{"model": "any", "messages": [{}]}'))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seen.counts[kind] += 1
    with suppress(ConnectionError):
        if kind == "body too large":
            writer.write(request(b"x" * 65536, length=1 << 30))
        else:
            writer.write(request(bad if kind == "malformed" else good))
        await writer.drain()
        first = await reader.read(64)
        status = int(first.split()[1]) if first else 0
        if kind in ("body too large", "malformed") and not 400 <= status < 500:
            seen.problems.append(f"{kind}: status {status}")
        for _ in range(60 if kind == "reads slowly" else 0):
            if not await reader.read(24):
                break
            await asyncio.sleep(0.1)
    writer.close()


async def clients(port: int, number: int, seconds: float, seed: int, seen: Seen) -> None:
    """Ask alone, then all at once for `seconds`, the second half with troublemakers among them."""
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        alone = {question: await answer(client, question, False) for question in QUESTIONS}
        began = time.monotonic()

        async def one(chance: random.Random) -> None:
            while (spent := time.monotonic() - began) < seconds:
                rude = spent > seconds / 2 and chance.random() < 0.3
                try:
                    async with asyncio.timeout(PATIENCE):
                        await (trouble(port, chance, seen) if rude else ask(client, alone, chance, seen))
                except TimeoutError:
                    seen.problems.append(f"a {'rude' if rude else 'polite'} client waited {PATIENCE} s in vain")
                told = f"{spent:4.0f} of {seconds:.0f} s, {sum(seen.counts.values())} requests"
                print(f"\r{told}, {len(seen.problems)} problems", end="", file=sys.stderr, flush=True)

        await asyncio.gather(*(one(random.Random(seed * 1000 + index)) for index in range(number)))
    print(file=sys.stderr)


# ---- what was seen -------------------------------------------------------------------------------


def judged(seen: Seen) -> list[str]:
    """The promises that were broken."""
    problems = list(seen.problems)
    slowest = statistics.quantiles(seen.health, n=100)[98]
    if slowest > HEALTH_LIMIT:
        problems.append(f"/health: p99 {1e3 * slowest:.0f} ms")
    quarter = max(1, len(seen.memory) // 4)
    before, after = (
        statistics.median(part) for part in (seen.memory[2 * quarter : 3 * quarter], seen.memory[-quarter:])
    )
    if after > before * (1 + GROWTH_LIMIT):
        problems.append(f"memory grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB")
    print(f"/health: p50 {1e3 * statistics.median(seen.health):.1f} ms, p99 {1e3 * slowest:.1f} ms")
    tenths = [seen.memory[len(seen.memory) * tenth // 10] / 2**20 for tenth in range(10)] + [seen.memory[-1] / 2**20]
    print(f"memory: {before / 2**20:.0f} MiB in the third quarter, {after / 2**20:.0f} MiB in the last; over time")
    print("  " + ", ".join(f"{one:.0f}" for one in tenths))
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    seen, over = Seen(), threading.Event()
    with server(given.checkpoint) as (port, pid):
        watch = threading.Thread(target=look, args=(port, pid, seen, over))
        watch.start()
        try:
            asyncio.run(clients(port, given.clients, given.seconds, given.seed, seen))
        finally:
            over.set()
            watch.join()
    for name, count in sorted(seen.counts.items()):
        print(f"{count:7,} {name}")
    problems = judged(seen)
    print(f"{len(problems)} broken promises")
    for line in problems[:20]:
        print(f"  {line}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
