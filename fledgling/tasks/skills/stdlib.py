"""The standard library: what a function does and where it lives, answered from its own docstring.

The one idea: facts that every machine with Python can check, read from the running interpreter, so the
model can know something real without a download. The facts of training and evaluation are the same: what is
measured is whether the model still finds the fact when asked in words it has never seen.

What it is not: no coding task. Another version of Python words a few docstrings differently, and the facts
follow.
"""

from __future__ import annotations

import importlib
import inspect
import random
import re
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from fledgling.config import UserError
from fledgling.tasks.skills.templates import decorate_template, expand_patterns
from fledgling.tasks.task import PRACTICE, TRAIN, GeneratedTask, Question, score_exact_match

NUM_FACTS = 256
MAX_ANSWER_CHARACTERS = 60  # characters of an answer
_MODULES_TEXT = """
os.path math random shutil json re itertools collections statistics string time textwrap hashlib functools
pathlib heapq bisect base64 copy datetime calendar os glob fnmatch tempfile pprint inspect operator secrets
shlex struct zlib gzip pickle csv html urllib.parse contextlib warnings logging platform uuid decimal
fractions types ast dis keyword locale difflib queue threading subprocess socket traceback linecache
tokenize unicodedata binascii stat sys gc weakref
"""
_MODULES = tuple(_MODULES_TEXT.split())
# Taken first; the rest of a module follows in alphabetical order, functions before classes.
_WELL_KNOWN_TEXT = """
os.path.join os.path.exists os.path.basename os.path.dirname os.path.splitext os.path.isdir math.sqrt
math.gcd math.factorial math.floor math.ceil math.log random.choice random.shuffle random.randint
random.sample shutil.copyfile shutil.rmtree shutil.move shutil.which json.dumps json.loads json.load
json.dump re.match re.search re.findall re.sub re.split itertools.chain itertools.product itertools.count
collections.Counter collections.deque collections.defaultdict collections.namedtuple statistics.mean
statistics.median statistics.stdev time.sleep time.time textwrap.wrap textwrap.dedent textwrap.fill
functools.reduce functools.lru_cache functools.partial functools.wraps pathlib.Path heapq.heappush
heapq.heappop bisect.insort base64.b64encode base64.b64decode copy.copy copy.deepcopy os.getcwd os.listdir
os.remove os.rename os.mkdir glob.glob pprint.pprint operator.add secrets.token_hex shlex.split pickle.dumps
csv.reader csv.writer subprocess.run threading.Thread queue.Queue datetime.date datetime.datetime sys.exit
"""
_WELL_KNOWN = frozenset(_WELL_KNOWN_TEXT.split())
_KINDS = ("does", "does", "module")  # two questions of three ask what it does

_NAME = "[{full}|{full}|{full}|{name} in {module}|{name} from {module}|the {name} function of {module}]"
_TRAIN = {
    "does": (
        f"what does {_NAME} [do|do exactly|do in python|actually do]?",
        f"what is {_NAME} [for|good for|used for|meant to do|there for|supposed to do]?",
        f"what is [the purpose|the job|the use|the task|the role] of {_NAME}?",
        f"[explain|describe|document|define|summarize|describe briefly|explain in short] {_NAME}",
        f"[tell me|explain|say|describe|i want to know|do you know|show me] what {_NAME} [does|is for|is used for]",
        f"what [can i do with|do i use|do people use|happens when i call|happens in|is done by] {_NAME}?",
        f"[why would i use|when do i use|why is there|how does] {_NAME} [help|work|come in]?",
        f"{_NAME} [does what|is for what|is used for what|: what does it do|: what is it for|, what is that]?",
        f"[give me|show|show me|what is|quote] the [docstring|description|documentation|meaning] of {_NAME}",
        f"[what is|what's|whats|help on|help with|help for|docs for|about] {_NAME}",
        f"[can|could|would] you [explain|describe|tell me about|document] {_NAME}?",
        f"i [found|saw|read|met|use] {_NAME}[, what does it do|. what is it for|. what does it do|, explain it]?",
        "in {module}, what does {name} [do|mean]?",
        "[python|the library] has {full}[, what does it do|, what is it for|. explain it|. describe it]",
        f"[how|in what way] does python [describe|document|explain] {_NAME}?",
        "{full}",
    ),
    "module": (
        "[which|what] module [has|contains|defines|provides|offers|holds|includes|gives me] {name}?",
        "[which|what] module is {name} [in|from|part of|defined in|found in]?",
        "[in|from] [which|what] module [is|comes|do i find|do i get|can i find] {name}?",
        "where [is|do i find|can i find|does python keep|do i get|can i get] {name}[| in python]?",
        "where does {name} [live|come from|belong]?",
        "[tell me|name|give me|find|say|show me] the module [of|for|with|that has|that contains|behind] {name}",
        "[what do i import|what must i import|what should i import|which import do i need] [for|to use|to get] {name}?",
        "{name} [is in|comes from|belongs to|lives in|is part of|is found in] [which|what] module?",
        "[i need|i want|i want to use|i look for] {name}[, which module?|, what do i import?|. which module has it?]",
        "[tell me|do you know|i forgot|say] [which module has|where to find|where to import|the home of] {name}",
        "[from which module|from what module|from where] [do i import|can i import|is] {name}?",
        "[module of|the module for|import for|home of] {name}?",
        "the function {name}[: which module|, where is it|: what module has it|, from what module]?",
        "[to which|to what] module does {name} belong?",
    ),
}
_PRACTICE = {
    "does": (
        "I came upon {full} in some code. What would it do?",
        "Say in one line what you get from {full}.",
        "Please look up {full} and read its description to me.",
        "Suppose I call {full}. What does that do?",
        "My program uses {full}; I ask myself what for.",
        "Finish this: the function {full} is used to",
        "Give a short explanation of {full}, as in the docs.",
        "What job does python give to {full}?",
    ),
    "module": (
        "Before using {name}, which module must be imported?",
        "The name {name}: in what module was it defined?",
        "I typed {name} and got a NameError. Which module did I forget?",
        "Where should a programmer look for {name}?",
        "Python keeps {name} inside which module?",
        "Someone needs {name}. Name the right module.",
        "Fill in the blank: from which module import {name}?",
        "Of all modules, which one gives us {name}?",
    ),
}
_UNSEEN = {
    "does": (
        "Could you remind me what {full} is supposed to do?",
        "I keep seeing {full} in programs; what does the thing do?",
        "In plain words, what is the purpose that {full} has?",
        "A colleague asked what {full} does and I had no answer.",
        "Let me know the use of {full} please.",
        "If I call {full} in my script, what will it do?",
        "What would the documentation say about {full}?",
        "Here is a function, {full}. Describe what it does for me.",
        "I am reading about {full} and would like an explanation.",
        "For what purpose did they add {full} to python?",
        "What exactly does the python function {full} do for us?",
        "Teach me about {full}: what is it used for?",
        "One line on {full}, saying what it will do.",
    ),
    "module": (
        "I would like to call {name}; which module should I import?",
        "Remind me in which of the modules {name} is found.",
        "What is the name of the module containing {name}?",
        "My script cannot find {name}. From which module does it come?",
        "The module that defines {name} is called what?",
        "Which python module would I open to read {name}?",
        "Do you remember what module {name} belongs to?",
        "Looking for {name} here, what module has it?",
        "Import {name}, but out of which module?",
        "Which of the library's modules is home to {name}?",
        "Where in the standard library is {name} defined, which module?",
        "Please tell us the module where {name} lives.",
    ),
}


@dataclass(frozen=True)
class Fact:
    """A public function or class: its module, its name, and what its docstring says in one sentence."""

    module: str
    name: str
    description: str
    has_unique_name: bool  # no other module of the list has a public callable of this name


def _first_sentence(thing: object) -> str:
    """Return the first sentence of the docstring when it is one short ASCII line, else the empty string."""
    documentation = getattr(thing, "__doc__", None)
    lines = documentation.strip().splitlines() if isinstance(documentation, str) else []
    while lines and re.match(r"[\w.]+\(.*\)(\s*->.*)?$", lines[0].strip()):  # a signature first
        lines = [line for line in lines[1:] if line.strip()]
    if not lines:
        return ""
    first = lines[0].strip()
    ends = len(lines) < 2 or not lines[1].strip() or first.endswith(".")
    sentence = re.split(r"(?<!e\.g)(?<!i\.e)\. ", first)[0].rstrip(".")
    fits = (
        12 <= len(sentence) < MAX_ANSWER_CHARACTERS
        and sentence.isascii()
        and sentence[:1].isupper()
        and " " in sentence
    )
    return f"{sentence}." if fits and ends else ""


def _public_callables(name: str) -> dict[str, object]:
    """Return the public callables that belong to module `name`, by name, sorted."""
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
    things = {key: getattr(module, key, None) for key in sorted(exported)}
    return {key: thing for key, thing in things.items() if len(key) > 1 and _is_defined_in(thing, name)}


def _is_defined_in(thing: object, module: str) -> bool:
    """Return whether `thing` is a function or class of `module`, not one it imports from elsewhere."""
    if inspect.isclass(thing):
        home = thing.__module__.split(".")[0].lstrip("_")
        return home in (module.split(".")[0], "builtins") and not issubclass(thing, (BaseException, Enum))
    return inspect.isroutine(thing)


def _sort_key(module: str):
    """Return the order of a module's names: well-known first, then functions, then classes."""
    return lambda item: (f"{module}.{item[0]}" not in _WELL_KNOWN, not item[0].islower(), item[0])


@lru_cache(maxsize=4)
def collect_facts(num_facts: int = NUM_FACTS) -> tuple[Fact, ...]:
    """Return `count` facts: one of each module in turn, its best-known names first.

    No two share a sentence. Raises UserError when there are fewer (docstrings stripped by `python -OO`).
    """
    public = {name: _public_callables(name) for name in _MODULES}
    homes = Counter(key for things in public.values() for key in things)
    waiting = {name: sorted(things.items(), key=_sort_key(name)) for name, things in public.items()}
    found: list[Fact] = []
    sentences: set[str] = set()
    while len(found) < num_facts and any(waiting.values()):
        for name, things in waiting.items():
            while things:
                key, thing = things.pop(0)
                sentence = _first_sentence(thing)
                if sentence and sentence not in sentences:
                    sentences.add(sentence)
                    found.append(Fact(name, key, sentence, homes[key] == 1))
                    break
    if len(found) < num_facts:
        raise UserError(
            f"the standard library gave {len(found)} facts, {num_facts} were asked for: "
            "lower the number, and do not run python with -OO"
        )
    return tuple(found[:num_facts])


@lru_cache(maxsize=1)
def _train_templates() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Return the training cores of each kind, one family a pattern, drawn with equal weight."""
    return {kind: tuple(expand_patterns(pattern) for pattern in patterns) for kind, patterns in _TRAIN.items()}


def list_templates(which: str) -> tuple[str, ...]:
    """Return all templates of a set: TRAIN (before openings and closings), PRACTICE or UNSEEN."""
    if which == TRAIN:
        return tuple({core: None for groups in _train_templates().values() for group in groups for core in group})
    return tuple(t for group in (_PRACTICE if which == PRACTICE else _UNSEEN).values() for t in group)


def _sample_question(num_facts: int, rng: random.Random, which: str) -> Question:
    fact, kind = rng.choice(collect_facts(num_facts)), rng.choice(_KINDS)
    if not fact.has_unique_name:
        kind = "does"
    full = f"{fact.module}.{fact.name}"
    slots = {"full": full, "name": fact.name, "module": fact.module}
    if which == TRAIN:
        core = rng.choice(rng.choice(_train_templates()[kind]))
        marks = rng.choice(("{}",) * 8 + ("{}()", "{}()", "`{}`", "'{}'", '"{}"'))
        slots["full"], slots["name"] = marks.format(full), marks.format(fact.name)
        prompt = decorate_template(core, rng).format(**slots)
    else:
        core = rng.choice((_PRACTICE if which == PRACTICE else _UNSEEN)[kind])
        prompt = core.format(**slots)
    answer = fact.description if kind == "does" else fact.module
    return Question("stdlib", prompt, answer, {"wording": core, "kind": kind, "name": full})


def make_task(num_facts: int = NUM_FACTS) -> GeneratedTask:
    """Return the task over the first `count` facts."""
    return GeneratedTask(
        "stdlib",
        lambda rng, which, evaluation: _sample_question(num_facts, rng, which),
        lambda question: question.answer,
        score_exact_match,
        has_holdout=False,
    )
