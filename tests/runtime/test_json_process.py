"""A child process of JSON lines: each question gets its own reply, within a time."""

import sys
from concurrent.futures import ThreadPoolExecutor

from fledgling.runtime.json_process import JsonProcess


def test_threads_that_ask_at_once_get_their_own_replies():
    code = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    process = JsonProcess([sys.executable, "-c", code])
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda n: process.ask({"n": n}, 60.0), range(200)))
    process.close()
    assert replies == [{"n": n} for n in range(200)]


def test_a_late_reply_and_an_ended_process_are_errors():
    process = JsonProcess([sys.executable, "-c", "import time; time.sleep(9)"])
    assert process.ask({}, 0.05) == {"error": "took more than 0.05 s"}
    process.close()
    process = JsonProcess([sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit(3)"])
    assert process.ask({}, 60.0) == {"error": "ended its process (exit code 3)"}
    process.close()


def test_texts_have_the_same_hash_in_every_process(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    hashes = set()
    for _ in range(2):
        process = JsonProcess([sys.executable, "-c", "print(hash('a'))"])
        hashes.add(process.read_reply(60.0))
        process.close()
    assert len(hashes) == 1
