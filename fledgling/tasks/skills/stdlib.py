"""The standard library: what a function does and in which module it is, answered from its docstring.

The facts are read from the running interpreter, so that every machine with Python can check them and nothing is
downloaded. Training and evaluation share the facts: the evaluation measures whether the model finds a fact when the
question is phrased in words that it has never seen. Another version of Python words a few docstrings differently, and
the facts follow.
"""

from __future__ import annotations

import importlib
import inspect
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial

from fledgling.config import UserError
from fledgling.tasks.skills.templates import decorate_template, expand_each, expand_weights, load_templates
from fledgling.tasks.task import PRACTICE, TRAIN, GeneratedTask, Question, is_held_out, score_exact_match

NUM_FACTS = 256
MAX_ANSWER_CHARACTERS = 60
_KINDS = ("does", "does", "module")  # two questions of three ask for the description


@dataclass(frozen=True)
class Fact:
    """A public function or class: its module, its name, and its docstring's first sentence."""

    module: str
    name: str
    description: str
    has_unique_name: bool  # no other listed module has a public callable of this name


def _first_sentence(thing: object) -> str:
    """Returns the first sentence of the docstring when it is one short ASCII line, else the empty string."""
    documentation = getattr(thing, "__doc__", None)
    lines = documentation.strip().splitlines() if isinstance(documentation, str) else []
    while lines and re.match(r"[\w.]+\(.*\)(\s*->.*)?$", lines[0].strip()):  # a signature comes first
        lines = [line for line in lines[1:] if line.strip()]
    if not lines:
        return ""
    first = lines[0].strip()
    is_complete = len(lines) < 2 or not lines[1].strip() or first.endswith(".")
    sentence = re.split(r"(?<!e\.g)(?<!i\.e)\. ", first)[0].rstrip(".")
    fits = 12 <= len(sentence) < MAX_ANSWER_CHARACTERS
    is_prose = sentence.isascii() and sentence[:1].isupper() and " " in sentence
    return f"{sentence}." if fits and is_prose and is_complete else ""


def _public_callables(module_name: str) -> dict[str, object]:
    """Returns the public callables that are defined in a module, by name, sorted."""
    module = importlib.import_module(module_name)
    exported = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
    things = {key: getattr(module, key, None) for key in sorted(exported)}
    return {key: thing for key, thing in things.items() if len(key) > 1 and _is_defined_in(thing, module_name)}


def _is_defined_in(thing: object, module: str) -> bool:
    """Returns whether `thing` is a function or class of `module`, not one that it imports."""
    if inspect.isclass(thing):
        origin = thing.__module__.split(".")[0].lstrip("_")
        return origin in (module.split(".")[0], "builtins") and not issubclass(thing, (BaseException, Enum))
    return inspect.isroutine(thing)


def _sort_key(module: str, well_known: frozenset[str]) -> Callable[[tuple[str, object]], tuple[bool, bool, str]]:
    """Returns the sort key of a module's (name, callable): well-known first, then functions, then classes."""
    return lambda item: (f"{module}.{item[0]}" not in well_known, not item[0].islower(), item[0])


@lru_cache(maxsize=4)
def collect_facts(num_facts: int = NUM_FACTS) -> tuple[Fact, ...]:
    """Returns `num_facts` facts: one of each module in turn, its best-known names first.

    No two share a sentence. Raises UserError when there are fewer (`python -OO` strips docstrings).
    """
    table = load_templates("stdlib")
    well_known = frozenset(table["well_known"].split())
    callables = {module: _public_callables(module) for module in table["modules"].split()}
    name_counts = Counter(name for things in callables.values() for name in things)
    pending = {
        module: sorted(things.items(), key=_sort_key(module, well_known)) for module, things in callables.items()
    }
    facts: list[Fact] = []
    sentences: set[str] = set()
    while len(facts) < num_facts and any(pending.values()):
        for module, things in pending.items():
            while things:
                name, thing = things.pop(0)
                sentence = _first_sentence(thing)
                if sentence and sentence not in sentences:
                    sentences.add(sentence)
                    facts.append(Fact(module, name, sentence, name_counts[name] == 1))
                    break
    if len(facts) < num_facts:
        raise UserError(
            f"the standard library gives {len(facts)} facts, fewer than the {num_facts} requested: "
            "lower the number, and do not run python with -OO"
        )
    return tuple(facts[:num_facts])


@lru_cache(maxsize=1)
def _train_templates() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Returns the training cores of each kind, one family for each pattern, drawn with equal weight."""
    table = load_templates("stdlib")[TRAIN]
    return {kind: expand_each(patterns) for kind, patterns in table.items()}


def list_templates(which: str) -> tuple[str, ...]:
    """Returns all templates of a set: TRAIN (before openings and closings), PRACTICE, DEV or TEST."""
    if which == TRAIN:
        groups = (group for families in _train_templates().values() for group in families)
        return tuple(dict.fromkeys(core for group in groups for core in group))
    return tuple(_kinds_by_template(which))


@lru_cache(maxsize=3)
def _kinds_by_template(which: str) -> dict[str, str]:
    """Returns the kind of question of each practice, dev or test template."""
    return {core: kind for kind, templates in load_templates("stdlib")[which].items() for core in templates}


def _sample_question(num_facts: int, rng: random.Random, which: str, held_out: bool, wording: str | None) -> Question:
    while True:
        fact, kind = rng.choice(collect_facts(num_facts)), rng.choice(_KINDS)
        kind = _kinds_by_template(which)[wording] if wording else kind
        if not fact.has_unique_name:
            if kind == "module" and wording:
                continue
            kind = "does"
        full_name = f"{fact.module}.{fact.name}"
        slots = {"full": full_name, "name": fact.name, "module": fact.module}
        if which == TRAIN:
            core = rng.choice(rng.choice(_train_templates()[kind]))
            quotes = rng.choice(expand_weights(load_templates("stdlib")["quotes"]))
            slots["full"], slots["name"] = quotes.format(full_name), quotes.format(fact.name)
            prompt = decorate_template(core, rng).format(**slots)
        else:
            core = wording or rng.choice(load_templates("stdlib")[which][kind])
            prompt = core.format(**slots)
        # Training has all facts, so that what can be held out from practice is a fact in a wording.
        if which != PRACTICE or is_held_out("practice", core, full_name) == held_out:
            break
    answer = fact.description if kind == "does" else fact.module
    return Question("stdlib", prompt, answer, {"wording": core, "kind": kind, "name": full_name})


def make_task(num_facts: int = NUM_FACTS) -> GeneratedTask:
    """Returns the task over the first `num_facts` facts."""
    return GeneratedTask(
        "stdlib",
        partial(_sample_question, num_facts),
        list_templates,
        lambda question: question.answer,
        score_exact_match,
        has_holdout=False,
    )
