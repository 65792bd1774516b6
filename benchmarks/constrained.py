"""Measures constrained answers: how many satisfy their schema, and their speed next to free text.

A model of random weights writes anything, so every token that a schema excludes would come soon: an answer that ends is
right because of the mask alone. Speeds are of batches of free text and of one string in JSON, in turns.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from fledgling.config import UserError

WORD = {"type": "string", "maxLength": 6}
SCHEMAS: dict[str, dict[str, Any]] = {
    "enum": {"enum": ["red", "green", 3, None, {"a": []}]},
    "integer in bounds": {"type": "integer", "minimum": -20, "maximum": 300},
    "number in bounds": {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
    "string of a length": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [WORD, {"type": "null"}], "items": False, "minItems": 2},
    "object": {
        "type": "object",
        "properties": {"name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 120}, "tags": {"const": []}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "anyOf and $ref": {
        "$defs": {"leaf": {"type": "integer", "minimum": 0, "maximum": 9}},
        "anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 3}],
    },
    "recursive": {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1}},
                "required": ["children"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
}


def measure_constrained(
    answers: int = 1000,
    batch: int = 16,
    tokens: int = 64,
    rounds: int = 5,
    threads: int = 1,
    suite: Path | None = None,
) -> dict[str, Any]:
    """Measures both, and a suite of schemas where there is one.

    Args:
        answers: in all, over SCHEMAS in turn.
        batch: answers decoded at once.
        tokens: of each answer whose speed is measured.
        rounds: of free and constrained batches, in turns.
        threads: of the model's matrix products.
        suite: see `measure_suite`.

    Returns:
        `answers`, `ended`, `valid` (of those that ended), `cut`, `by_schema`: name -> counts; `free` and `constrained`:
        median tokens a second, and `cores`, `threads`, `load`.
    """
    import torch

    torch.set_num_threads(threads)
    engine = _make_engine()
    result: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "threads": threads, "load": os.getloadavg()[0]}
    if suite is not None:
        result["suite"] = measure_suite(suite)
    result |= {"batch": batch, "tokens": tokens, **_count_valid(engine, answers, batch)}
    speeds: dict[str, list[float]] = {"free": [], "constrained": []}
    grammar = engine.grammars.compile_schema({"type": "string", "minLength": 50 * tokens})
    for _ in range(rounds + 1):
        for name, constraint in (("free", None), ("constrained", grammar)):
            speeds[name].append(_measure_speed(engine, constraint, batch, tokens))
    return result | {name: median(values[1:]) for name, values in speeds.items()}  # the first round warms up


def measure_suite(folder: Path) -> dict[str, int]:
    """Returns counts over the cases of a JSON-Schema-Test-Suite: schemas that are compiled or rejected, and instances.

    A valid instance may be rejected (its keys are in another order than the schema's); an invalid one that is accepted
    would break what a schema promises.

    Args:
        folder: the suite's tests of one draft, such as tests/draft2020-12.
    """
    compiler = _make_engine().grammars
    counts: Counter[str] = Counter()
    for path in sorted(folder.glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            try:
                grammar = compiler.compile_schema(group["schema"])
            except UserError:
                counts["schemas rejected"] += 1
                continue
            counts["schemas compiled"] += 1
            for case in group["tests"]:
                ids = compiler.tokenizer.encode(json.dumps(case["data"], ensure_ascii=False))
                matcher = grammar.start().matcher
                accepted = matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()
                kind = "valid" if case["valid"] else "invalid"
                counts[f"{kind} {'accepted' if accepted else 'rejected'}"] += 1
    return dict(counts)


def _make_engine() -> Any:
    """Returns an engine of 4 layers and 256 channels, 8,192 entries and random weights: the quickstart's size."""
    from fledgling.config.model import ModelConfig
    from fledgling.infer.engine import Engine
    from fledgling.model.transformer import Transformer
    from fledgling.text.tokenizer import Tokenizer

    choose = random.Random(0)
    words = ["".join(choose.choices("etaoinshrdlu", k=choose.randint(2, 9))) for _ in range(9000)]
    tokenizer = Tokenizer.train([" ".join(choose.choices(words, k=200_000))], vocab_size=8192)
    model = Transformer(ModelConfig(tokenizer.vocab_size, 4, 256, 2, 2, 512, preset="nanochat-2025"))
    model.initialize(0)
    return Engine(model, tokenizer)


def _run(engine: Any, grammars: list[Any], batch: int, tokens: int) -> list[Any]:
    """Returns finished requests, one for each grammar, each with its own seed."""
    from fledgling.infer.sampling import SamplingParams

    scheduler = engine.make_scheduler(batch)
    requests = []
    for seed, grammar in enumerate(grammars):
        sampling = SamplingParams(max_new_tokens=tokens, seed=seed, logit_bias=())
        requests.append(engine.make_request([engine.tokenizer.bos], sampling, use_tools=False, grammar=grammar))
        scheduler.add_request(requests[-1])
    while scheduler.has_unfinished:
        scheduler.step()
    return requests


def _measure_speed(engine: Any, grammar: Any, batch: int, tokens: int) -> float:
    start = time.perf_counter()
    requests = _run(engine, [grammar] * batch, batch, tokens)
    return sum(len(request.tokens) for request in requests) / (time.perf_counter() - start)


def _count_valid(engine: Any, answers: int, batch: int) -> dict[str, Any]:
    from jsonschema import Draft202012Validator

    names = [list(SCHEMAS)[number % len(SCHEMAS)] for number in range(answers)]
    grammars = {name: engine.grammars.compile_schema(schema) for name, schema in SCHEMAS.items()}
    by_schema: dict[str, Counter[str]] = {name: Counter() for name in SCHEMAS}
    for name, request in zip(names, _run(engine, [grammars[name] for name in names], batch, 400), strict=True):
        if request.finish_reason != "stop":
            by_schema[name]["cut"] += 1
            continue
        value = json.loads(engine.tokenizer.decode(request.tokens[:-1]))
        valid = Draft202012Validator(SCHEMAS[name]).is_valid(value)
        by_schema[name]["valid" if valid else "invalid"] += 1
    total = sum(by_schema.values(), Counter[str]())
    ended = total["valid"] + total["invalid"]
    counts = {"answers": answers, "ended": ended, "valid": total["valid"], "cut": total["cut"]}
    return counts | {"by_schema": {name: dict(count) for name, count in by_schema.items()}}


def format_constrained(result: dict[str, Any]) -> str:
    """Returns a result of `measure_constrained` as text."""
    lines = [
        f"{result['answers']:,} answers of a random model: {result['ended']:,} ended, {result['valid']:,} of them "
        f"valid; {result['cut']:,} were cut",
        *(f"  {name:20}{counts}" for name, counts in result["by_schema"].items()),
        f"batch {result['batch']}, {result['threads']} threads of {result['cores']} cores, load {result['load']:.1f}: "
        f"free {result['free']:,.0f} tok/s, constrained {result['constrained']:,.0f} "
        f"({result['constrained'] / result['free'] - 1:+.1%})",
    ]
    if "suite" in result:
        lines.append(f"JSON-Schema-Test-Suite: {result['suite']}")
    return "\n".join(lines)
