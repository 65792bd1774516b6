"""Many clients at once against a real server: python -m tests.campaigns.load CHECKPOINT --clients 64 --seconds 120

First every question is sent alone. Then the clients send random questions, streaming and not, with OpenAI's own client;
in the second half some of them disconnect in mid-answer, read slowly, or send bodies that are too large or no JSON.
The checks: every answer is the one that its question gets alone and none is another question's, every bad body gets a
4xx, a full queue a 429, the server's memory does not grow, and /health answers all the time.

An answer that differs from the one alone is no failure where products are rounded (bf16): another batch rounds
differently, which may decide between two nearly equal tokens. It is counted; the answer to another question is always a
failure.
"""

import argparse
import asyncio
import http.client
import json
import multiprocessing
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
from typing import Any

import openai

WORDS = ("apple", "river", "stone", "cloud", "tiger", "piano", "lemon", "coat", "train", "candle", "window", "garden")
QUESTIONS = [f"Spell the word {word}." for word in WORDS] + [f"What is {7 * n} plus {3 * n + 1}?" for n in range(1, 17)]
TOKENS = 48
CLIENT_TIMEOUT = 30  # seconds
HEALTH_LIMIT = 0.025  # seconds; 99 of 100 answers of /health must be faster
GROWTH_LIMIT = 0.03  # of the resident memory, from the third quarter of the time to the last, under the same load


@dataclass
class Observations:
    """Counts, failures, seconds of /health and bytes of resident memory."""

    counts: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


@contextmanager
def run_server(checkpoint: str):
    """Runs `fledgling serve` in its own process; yields its port and pid."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fledgling", "serve", checkpoint, "--port", "0", "--model-name", "any"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for line in process.stdout:
            if match := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                threading.Thread(target=process.stdout.read, daemon=True).start()
                yield int(match[1]), process.pid
                return
        raise SystemExit("the server did not start")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def monitor_server(port: int, pid: int, finished: Any, results: Any) -> None:
    """Requests /health ten times a second, and reads the server's resident memory once a second.

    It runs in a process of its own, so that what it measures waits for the server alone and not for the clients.

    Args:
        port, pid: of the server.
        finished: an event that ends it.
        results: a connection that gets `Observations` with problems, health and memory.
    """
    observations, page, last = Observations(), os.sysconf("SC_PAGE_SIZE"), 0.0
    while not finished.wait(0.1):
        began = time.perf_counter()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
            connection.close()
        except (OSError, AssertionError) as error:
            observations.problems.append(f"/health: {error!r}")
        observations.health.append(time.perf_counter() - began)
        if time.monotonic() - last > 1:
            last = time.monotonic()
            with open(f"/proc/{pid}/statm") as file:
                observations.memory.append(int(file.read().split()[1]) * page)
    results.send(observations)


@contextmanager
def monitored(port: int, pid: int, observations: Observations):
    """Monitors a server while the block runs, and adds what was observed to `observations`."""
    context = multiprocessing.get_context("spawn")
    finished, (receiver, sender) = context.Event(), context.Pipe(duplex=False)
    process = context.Process(target=monitor_server, args=(port, pid, finished, sender))
    process.start()
    try:
        yield
    finally:
        finished.set()
        seen = receiver.recv()
        process.join()
        observations.problems += seen.problems
        observations.health, observations.memory = seen.health, seen.memory


# ---- clients -------------------------------------------------------------------------------------


async def get_answer(client: openai.AsyncOpenAI, question: str, stream: bool) -> str:
    """Returns the server's greedy answer to a question."""
    arguments = {"model": "any", "messages": [{"role": "user", "content": question}], "max_tokens": TOKENS}
    if not stream:
        response = await client.chat.completions.create(**arguments, temperature=0)
        return response.choices[0].message.content or ""
    chunks = await client.chat.completions.create(**arguments, temperature=0, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])


async def send_question(
    client: openai.AsyncOpenAI, expected: dict[str, str], generator: random.Random, observations: Observations
) -> None:
    """Sends one question and compares its answer with the one it gets alone."""
    question, stream = generator.choice(QUESTIONS), generator.random() < 0.5
    try:
        answer = await get_answer(client, question, stream)
    except openai.RateLimitError:
        observations.counts["rejected (429)"] += 1
        await asyncio.sleep(0.2)
        return
    except openai.OpenAIError as error:
        observations.problems.append(f"{question}: {error!r}")
        return
    if answer == expected[question]:
        observations.counts["answered as alone"] += 1
    elif answer in expected.values():
        observations.problems.append(f"{question}: got another question's answer, {answer!r}")
    else:
        observations.counts["answered, rounded differently"] += 1


def make_request(body: bytes, length: int | None = None) -> bytes:
    """Returns the bytes of a POST to the chat endpoint."""
    head = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        "Content-Type: application/json",
    )
    return "\r\n".join((*head, f"Content-Length: {length or len(body)}", "", "")).encode() + body


async def misbehave(port: int, generator: random.Random, observations: Observations) -> None:
    """Runs one client that disconnects, reads slowly, or sends an invalid body."""
    kind = generator.choice(("disconnects", "reads slowly", "body too large", "malformed"))
    messages = [{"role": "user", "content": generator.choice(QUESTIONS)}]
    good = json.dumps({"model": "any", "messages": messages, "max_tokens": TOKENS, "stream": True}).encode()
    bad = generator.choice((b"{", b"[]", b"\xff\xfe", b'{"messages": 3}', b'{"model": "any", "messages": [{}]}'))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    observations.counts[kind] += 1
    with suppress(ConnectionError):
        if kind == "body too large":
            writer.write(make_request(b"x" * 65536, length=1 << 30))
        else:
            writer.write(make_request(bad if kind == "malformed" else good))
        await writer.drain()
        first = await reader.read(64)
        status = int(first.split()[1]) if first else 0
        if kind in ("body too large", "malformed") and not 400 <= status < 500:
            observations.problems.append(f"{kind}: status {status}")
        for _ in range(60 if kind == "reads slowly" else 0):
            if not await reader.read(24):
                break
            await asyncio.sleep(0.1)
    writer.close()


async def run_clients(port: int, number: int, seconds: float, seed: int, observations: Observations) -> None:
    """Sends each question alone, then all at once for `seconds`; in the second half some clients misbehave."""
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        expected = {question: await get_answer(client, question, False) for question in QUESTIONS}
        began = time.monotonic()

        async def run_client(generator: random.Random) -> None:
            while (elapsed := time.monotonic() - began) < seconds:
                misbehaves = elapsed > seconds / 2 and generator.random() < 0.3
                try:
                    async with asyncio.timeout(CLIENT_TIMEOUT):
                        await (
                            misbehave(port, generator, observations)
                            if misbehaves
                            else send_question(client, expected, generator, observations)
                        )
                except TimeoutError:
                    observations.problems.append(
                        f"a {'misbehaving' if misbehaves else 'normal'} client got no answer for {CLIENT_TIMEOUT} s"
                    )
                counts = f"{elapsed:4.0f} of {seconds:.0f} s, {sum(observations.counts.values())} requests"
                print(f"\r{counts}, {len(observations.problems)} problems", end="", file=sys.stderr, flush=True)

        await asyncio.gather(*(run_client(random.Random(seed * 1000 + index)) for index in range(number)))
    print(file=sys.stderr)


# ---- results -------------------------------------------------------------------------------


def check_results(observations: Observations) -> list[str]:
    """Prints the measurements and returns the failed checks."""
    problems = list(observations.problems)
    slowest = statistics.quantiles(observations.health, n=100)[98]
    if slowest > HEALTH_LIMIT:
        problems.append(f"/health: p99 {1e3 * slowest:.0f} ms")
    quarter = max(1, len(observations.memory) // 4)
    before, after = (
        statistics.median(part)
        for part in (observations.memory[2 * quarter : 3 * quarter], observations.memory[-quarter:])
    )
    if after > before * (1 + GROWTH_LIMIT):
        problems.append(f"memory grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB")
    print(f"/health: p50 {1e3 * statistics.median(observations.health):.1f} ms, p99 {1e3 * slowest:.1f} ms")
    tenths = [observations.memory[len(observations.memory) * tenth // 10] / 2**20 for tenth in range(10)] + [
        observations.memory[-1] / 2**20
    ]
    print(f"memory: {before / 2**20:.0f} MiB in the third quarter, {after / 2**20:.0f} MiB in the last; finished time")
    print("  " + ", ".join(f"{one:.0f}" for one in tenths))
    return problems


def main() -> int:
    """Runs the server and the clients; returns 1 when a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    observations = Observations()
    with run_server(options.checkpoint) as (port, pid), monitored(port, pid, observations):
        asyncio.run(run_clients(port, options.clients, options.seconds, options.seed, observations))
    for name, count in sorted(observations.counts.items()):
        print(f"{count:7,} {name}")
    problems = check_results(observations)
    print(f"{len(problems)} failed checks")
    for line in problems[:20]:
        print(f"  {line}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
