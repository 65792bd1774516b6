"""Counting letters: `How many r are in strawberry?` gives ` s t r1 a w b e r2 r3 y:3`.

The one idea: a small model cannot count at a glance, but it can spell and keep a tally. Every step is
local: after a letter comes the next letter or, when it is the one asked for, the tally so far; after the
colon, the last tally.

What it is not: no counting of words or vowels. Answers are balanced on purpose (drawn before the word is), so
that always saying "1" is right in two questions of five only.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache

from fledgling.tasks.skills.spelling import quote_word
from fledgling.tasks.skills.templates import decorate_template, expand_patterns
from fledgling.tasks.skills.words import MAX_LETTERS, list_real_words, sample_pseudoword
from fledgling.tasks.task import PRACTICE, TRAIN, GeneratedTask, Question, is_held_out

# Here {c} is the letter (r, "r", the letter r), {cs} its plural (r, r's, letters r), {w} the word.
_IN = "in [{w}|{w}|the word {w}|this word: {w}]"
_WORD = "[{w}|the word {w}]"
_PATTERNS = (
    (
        f"how many {{cs}} [are|are there|do you see|can you find|do you count|appear|occur|can you count] {_IN}?",
        f"how many {{cs}} does {_WORD} [have|contain|include|hold]?",
        f"how many {{cs}} {_IN}?",
        f"how many times [does {{c}} appear|does {{c}} occur|is {{c}} used|do you see {{c}}|"
        f"do you find {{c}}|"
        f"is there {{c}}|can i find {{c}}] {_IN}?",
        f"how often [does {{c}} appear|does {{c}} occur|is {{c}} used|do you see {{c}}|is {{c}} written] {_IN}?",
        f"{_IN}, how [many {{cs}} are there|many {{cs}} do you see|often is {{c}} used|often does {{c}} appear]?",
        f"[what is|do you know|can you tell me|what would be] the [number|count] of {{cs}} {_IN}?",
        f"do you know how [many {{cs}} are|often {{c}} appears|many times {{c}} occurs] {_IN}?",
        f"{_WORD} [has|contains|includes] how many {{cs}}?",
        f"how many [letters|of the letters|of all letters] {_IN} are {{c}}?",
        f"[do you see|is there|can you find|are there] any {{c}} {_IN}, [how many|and how many|how often]?",
        f"when [i|you|we] [spell|write|type|read] {_WORD}, how [often do i see {{c}}|many {{cs}} are there|"
        f"many times does {{c}} come]?",
    ),
    (
        f"[count|count up|please count|now count] [|all|all the|the|every|each] {{cs}} {_IN}",
        f"count [how many {{cs}} are|how often {{c}} appears|how many times {{c}} occurs|"
        f"how often you see {{c}}] "
        f"{_IN}",
        f"[find|give|give me|tell me|report|state|work out|determine|write|find out] the "
        f"[number|count|total number] of {{cs}} {_IN}",
        f"[tell me|find out|check|say|work out|i want to know|show me] how [many {{cs}} are|"
        f"often {{c}} occurs|"
        f"many times {{c}} appears|often you find {{c}}] {_IN}",
        f"[can|could|would|will] you count the {{cs}} {_IN}?",
        f"[i need|i want|let me have|show me] the [number|count] of {{cs}} {_IN}",
        f"[help me|i want to|i have to|i need you to|let us|try to] count the {{cs}} {_IN}",
        f"[go through|look through|read|check|look at|take] {_WORD} and [count|tell me] the [{{cs}}|number of {{cs}}]",
    ),
    (
        "[{w}|the word is {w}|here is a word: {w}|i have the word {w}|my word is {w}|"
        "take the word {w}|consider {w}|"
        "look at {w}|next word: {w}|think of {w}|the word {w}][. |: |, |; | - ]"
        "[how many {cs}?|how many {cs} are there?|how many {cs} does it have?|count the {cs}|"
        "how often is {c} used?|"
        "how many {cs} are in it?|how many times does {c} appear?|count {c}|the number of {cs}?|"
        "how often {c}?|"
        "how many {cs} do you see?|tell me how many {cs}|find the count of {cs}]",
        "[the letter is {c}, the word is {w}|letter {c}, word {w}|letter: {c}, word: {w}|{c} in {w}]"
        "[: how many?|, how many?|, how often?|. how many times?|: count it|. count it|: count|"
        ", what is the count?]",
        "[number of|count of|total of|count] {cs} in {w}",
    ),
)
_PRACTICE = (
    "You have {w} before you. Tick each {c} and tell me how many ticks.",
    'The number of times that "{c}" is found in "{w}" is what?',
    'Scan "{w}" for the letter {c}. How many hits?',
    "I say {w} and you say how many {c} it includes.",
    'Someone claims "{w}" has several {c}\'s. What does your count say?',
    "Does {w} contain {c}, and how many of them?",
    'Total up each letter "{c}" that occurs in {w}.',
    "Let us see, {w}: with how many of the letter {c}?",
    'My pen skips every "{c}". How many are missing when I write "{w}"?',
    "Keep a count of {c} as you spell {w}.",
    'If all letters "{c}" in "{w}" were red, how many red ones do I see?',
    "The letter {c} occurs how often inside {w}?",
    'Check "{w}" and report its number of "{c}".',
    "Counting only {c}, what do you find in {w}?",
    'Of the letters in "{w}", how many are "{c}"?',
    "Please count for me: the {c}'s inside the word {w}.",
)
_UNSEEN = (
    'If I spell "{w}", how many times do I write the letter "{c}"?',
    "Take a close look at {w} and count each {c} you come across.",
    'What number of "{c}" letters is there in "{w}"?',
    "I bet you cannot tell how many {c}'s the word {w} has got.",
    'The letter "{c}" shows up how many times in "{w}"?',
    "A puzzle about letters: how many of them are {c} in {w}?",
    'Given the word "{w}", report how many "{c}" there are.',
    "Writing {w} takes how many of the letter {c}?",
    'Among the letters of "{w}", count those equal to "{c}".',
    "When we read {w}, how often do we meet the letter {c}?",
    'Would you say what the count of the letter "{c}" inside "{w}" is?',
    "Somebody typed {w}. How many times was the {c} key used?",
    'Please look for "{c}" in the word "{w}" and give me the number you find.',
    "Can you see any {c} in {w}? Count them.",
    'Let x be the number of letters "{c}" in "{w}". What is x?',
    "I would love a count of how many {c}'s appear in the word {w}.",
    'Suppose you circle each "{c}" in "{w}". How many circles?',
    "My question is about {w}: does it have the letter {c}, and how many?",
    'On a sign saying "{w}", how many letters are "{c}"?',
    "How large is the number of {c}'s that {w} contains?",
    'Find every "{c}" that occurs in "{w}", then tell me how many.',
    "For the word {w}, the letter {c} is counted how many times?",
    'Tell us the total when counting "{c}" across "{w}".',
    "You need how many tiles with the letter {c} to lay {w}?",
)
_ONE = ("{}",) * 4 + (
    "'{}'",
    '"{}"',
    '"{}"',
    "the letter {}",
    "the letter {}",
    "letter {}",
    "the letter '{}'",
    "a {}",
)
_MANY = (
    ("{}",) * 4 + ("{}'s",) * 4 + ("'{}'", '"{}"', '"{}"', "letters {}", "letter {}", "letter {}'s", "'{}'s", '"{}"s')
)
_COUNT_SHARES = ((0, 0.15), (1, 0.40), (2, 0.30), (3, 0.15))  # the last stands for "three or more"
_LETTERS_BY_FREQUENCY = "aaabcddeeefghiiiklmnnnoooprrrsssttttuvwy"


@lru_cache(maxsize=1)
def _train_templates() -> tuple[tuple[str, ...], ...]:
    """Return the training cores, in families that are drawn with equal weight."""
    return tuple(expand_patterns(*patterns) for patterns in _PATTERNS)


def list_templates(which: str) -> tuple[str, ...]:
    """Return all templates of a set: TRAIN (before openings and closings), PRACTICE or UNSEEN."""
    if which == TRAIN:
        return tuple({core: None for group in _train_templates() for core in group})
    return _PRACTICE if which == PRACTICE else _UNSEEN


@lru_cache(maxsize=2)
def _words_by_count(evaluation: bool) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Return the (word, letter) pairs with the letter once, twice, and three times or more."""
    pools: tuple[list[tuple[str, str]], ...] = ([], [], [])
    for word in list_real_words(evaluation, MAX_LETTERS):
        for letter in sorted(set(word)):
            pools[min(word.count(letter), 3) - 1].append((word, letter))
    return tuple(map(tuple, pools))


def _sample_word_and_letter(rng: random.Random, evaluation: bool) -> tuple[str, str]:
    """Return a word and a letter whose count follows `_SHARES`."""
    wanted = rng.choices([count for count, _ in _COUNT_SHARES], [share for _, share in _COUNT_SHARES])[0]
    if wanted == 0:
        word = rng.choice(list_real_words(evaluation, MAX_LETTERS))
        return word, rng.choice([letter for letter in _LETTERS_BY_FREQUENCY if letter not in word])
    if evaluation or rng.random() < 0.6:
        return rng.choice(_words_by_count(evaluation)[wanted - 1])
    while True:  # a made-up word, with the letter put in where it is missing
        word, letter = list(sample_pseudoword(rng, MAX_LETTERS - 2)), rng.choice(_LETTERS_BY_FREQUENCY)
        while word.count(letter) < wanted:
            word.insert(rng.randint(0, len(word)), letter)
        text = "".join(word)
        if len(text) <= MAX_LETTERS and not is_held_out("word", text) and text.count(letter) <= max(wanted, 3):
            return text, letter


def write_tally(word: str, letter: str) -> str:
    """Return the reference reply: the letters, a running tally behind each match, a colon, the count."""
    count, steps = 0, []
    for each in word:
        count += each == letter
        steps.append(f" {each}{count}" if each == letter else f" {each}")
    return f"{''.join(steps)}:{count}"


def _sample_question(rng: random.Random, which: str, evaluation: bool) -> Question:
    word, letter = _sample_word_and_letter(rng, evaluation)
    if which == TRAIN:
        core = rng.choice(rng.choice(_train_templates()))
        one, many = rng.choice(_ONE).format(letter), rng.choice(_MANY).format(letter)
        prompt = decorate_template(core, rng).format(c=one, cs=many, w=quote_word(word, rng))
    else:
        core = rng.choice(list_templates(which))
        prompt = core.format(c=letter, w=word)
    return Question("counting", prompt, str(word.count(letter)), {"wording": core, "word": word, "letter": letter})


def score_count(question: Question, answer: str) -> float:
    """Return 1.0 when the last whole number in `answer` is the count, else 0.0."""
    numbers = re.findall(r"\d+", answer)
    return float(bool(numbers) and int(numbers[-1]) == int(question.answer))


def _write_reply(question: Question) -> str:
    return write_tally(question.facts["word"], question.facts["letter"])


def make_task() -> GeneratedTask:
    """Return the task."""
    return GeneratedTask("counting", _sample_question, _write_reply, score_count)
