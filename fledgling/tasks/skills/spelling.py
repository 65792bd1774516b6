"""Spelling: a word in, its letters out, one token each: `apple` gives ` a p p l e`.

The one idea: a model that reads pieces of words never sees letters, and this teaches it what its pieces are
made of. With a space before each letter the answer is one known token a letter.

What it is not: no dictionary, no phonetics, no capitals. Made-up words are for training only.
"""

from __future__ import annotations

import random
from functools import lru_cache

from fledgling.tasks.skills.templates import decorate_template, expand_patterns
from fledgling.tasks.skills.words import list_real_words, sample_pseudoword
from fledgling.tasks.task import PRACTICE, TRAIN, GeneratedTask, Question

MAX_LETTERS = 10

# Here {w} is the word, bare or in quotes.
_WORD = "[{w}|{w}|the word {w}|this word: {w}]"
_LETTERS = "[letters|characters|single letters]"
_MANNER = "[letter by letter|one letter at a time|one by one|with spaces|in order|slowly|as letters]"
_REQUESTS = (
    f"[spell|spell out|please spell|now spell] {_WORD}",
    f"[spell|spell out|write|write out|type|print|say|read|recite|give|show] {_WORD} {_MANNER}",
    f"[list|write|write down|give|give me|show|show me|tell me|name|say|print|type|enumerate|"
    f"read] the {_LETTERS} "
    f"[of|in] {_WORD}",
    f"[list|name|write|say|give me|show] [each|every|all] [letter|letters] [of|in] {_WORD}",
    f"[break|split|cut|divide|take|pull|chop] {_WORD} [into|apart into] [|its|separate|single] letters",
    f"[take|pull] {_WORD} apart [|letter by letter|into letters]",
    f"[separate|space out|put spaces between|isolate] the letters [of|in] {_WORD}",
    f"[give|give me|tell me|show|write|write down|find] the [spelling|letters] of {_WORD}",
    f"[turn|change|convert] {_WORD} into [letters|its letters|a list of letters|spaced letters]",
    f"[do|make] the spelling of {_WORD}",
    f"[i want|i need|i would like|let me see|let me have] the [letters|spelling] of {_WORD}",
    f"[help me|i need help to|i want to|i have to|teach me to|show me how to|tell me how to] spell {_WORD}",
    f"[can|could|would|will] you [spell|spell out|write out the letters of|list the letters of] {_WORD}?",
    f"[can|could|would|will] you [break|split] {_WORD} into letters?",
)
_QUESTIONS = (
    f"how [do you|do i|do we|would you|should i|can i|does one|to] spell {_WORD}?",
    f"how is {_WORD} [spelled|spelt|written|written letter by letter]?",
    f"[what is|what's|do you know] the spelling of {_WORD}?",
    f"[what are|what are all|do you know|can you name|can you list] the {_LETTERS} [of|in] {_WORD}?",
    f"[what|which] {_LETTERS} [are in|make up|make|form|are used in|do you see in|do i need for] {_WORD}?",
    f"[what|which] letters does {_WORD} [have|contain|consist of]?",
    f"[of|from] [what|which] letters is {_WORD} made?",
    f"what is {_WORD} [letter by letter|in letters|spelled out|when spelled out]?",
    f"{_WORD} is spelled how?",
    f"[what|which] letters do [i|you|we] [write|type|see|use|need] [for|in|to spell|to write] {_WORD}?",
    f"if [i|you|we] [spell|write|type] {_WORD}, [what|which] letters [come|are there|do you get|are used]?",
    f"[what does|how does] {_WORD} look [letter by letter|in letters|with spaces between the letters]?",
)
_AFTER = (
    "[{w}|the word {w}|the word is {w}|here is a word: {w}|i have the word {w}|my word is {w}|"
    "take the word {w}|"
    "consider {w}|look at {w}|next word: {w}|think of {w}|i read {w}|i heard {w}][. |: |, |; | - ]"
    "[spell it|spell this|spell this word|spell it out|spell that|how is it spelled?|how do you spell it?|"
    "what are its letters?|list its letters|which letters?|give its letters|write its letters|"
    "letter by letter|"
    "now its letters|split it into letters|what letters are in it?|tell me the letters|name each letter]",
    "[spelling|spell|letters|letter by letter|spell this|spell the word|in letters|all letters|each letter|"
    "every letter|the single letters][: | - |, | please: | of: ]{w}",
    "[i|you|we|they|children|people] [cannot|must|want to|have to|learn to] [spell|write] {w}[. |, |: ]"
    "[spell it|show me|how is it spelled?|show the letters|help|letters please|what letters?|"
    "tell the letters]",
)
_PRACTICE = (
    "I want to see the word {w} with a gap after each letter.",
    "Go through {w} and write every letter you meet.",
    'A child asks how "{w}" gets spelled. Show it.',
    "Spelling bee! Your turn: {w}",
    "Hand me {w} as a row of separate letters.",
    'For the crossword I must spell "{w}" into the boxes.',
    "From first to last, what letters stand in {w}?",
    'Dictate "{w}" to me so that I can write each letter.',
    "Would you unpack {w} for me, letter after letter?",
    'The letters that you need to write "{w}" are which?',
    "Once more with spaces, letter for letter: {w}",
    'I never know how people spell "{w}". Do you?',
    "Make a chain of the letters inside {w}.",
    'When spelling "{w}" aloud, what do you say?',
    "Put {w} on my screen, each letter on its own.",
    "Unfold the spelling of the word {w} for everyone here.",
)
_UNSEEN = (
    'My daughter cannot write "{w}" yet; spell it for her.',
    "Do me a favour and spell out loud the word {w}.",
    'Which letters would I press on a keyboard to type "{w}"?',
    "Let me hear every letter that the word {w} has.",
    'What is the correct way to spell "{w}"?',
    "I am filling in a form and need the spelling for {w}.",
    'Starting at the front, name all letters found in "{w}".',
    "Pretend we are at a spelling contest and the word is {w}.",
    'Kindly write "{w}" so that the letters stand apart.',
    "If you had to spell {w}, what would you write?",
    'How would the word "{w}" be spelled by a teacher?',
    "Separate letters only, please, for the word {w}.",
    'Someone over the phone did not catch "{w}", spell that for them.',
    "Could I get the individual letters that {w} is built from?",
    'In the word "{w}", what letters appear, in order?',
    "Slice {w} up and give me one letter after another.",
    'Say "{w}" to me as a sequence of letters.',
    "Is it hard to spell {w}? Show me.",
    'The label must read "{w}": which letters do I cut out?',
    "I am unsure about the spelling. The word: {w}",
    'Letters, please! All those contained in "{w}".',
    "You know the word {w}, right? Then list each of its letters.",
    'Type out "{w}" but leave a blank between letters.',
    "We are learning to spell. Today we learn {w}.",
)
_QUOTES = ("{}",) * 10 + ('"{}"',) * 5 + ("'{}'",) * 3 + ("`{}`", "*{}*", "“{}”")


@lru_cache(maxsize=1)
def _train_templates() -> tuple[tuple[str, ...], ...]:
    """Return the training cores, in families that are drawn with equal weight."""
    return expand_patterns(*_REQUESTS), expand_patterns(*_QUESTIONS), expand_patterns(*_AFTER)


def list_templates(which: str) -> tuple[str, ...]:
    """Return all templates of a set: TRAIN (before openings and closings), PRACTICE or UNSEEN."""
    if which == TRAIN:
        return tuple({core: None for group in _train_templates() for core in group})
    return _PRACTICE if which == PRACTICE else _UNSEEN


def quote_word(word: str, rng: random.Random) -> str:
    """Return `word` bare (half of the time) or in one of the usual marks."""
    return rng.choice(_QUOTES).format(word)


def spell_word(word: str) -> str:
    """Return the letters of `word`, a space before each."""
    return "".join(f" {letter}" for letter in word)


def _sample_question(rng: random.Random, which: str, evaluation: bool) -> Question:
    if not evaluation and rng.random() < 0.4:
        word = sample_pseudoword(rng, MAX_LETTERS)
    else:
        word = rng.choice(list_real_words(evaluation, MAX_LETTERS))
    if which == TRAIN:
        core = rng.choice(rng.choice(_train_templates()))
        prompt = decorate_template(core, rng).format(w=quote_word(word, rng))
    else:
        core = rng.choice(list_templates(which))
        prompt = core.format(w=word)
    return Question("spelling", prompt, spell_word(word), {"wording": core, "word": word})


def score_spelling(question: Question, answer: str) -> float:
    """Return 1.0 when the letters of `answer` are those of the word, whatever separates them; else 0.0."""
    return float("".join(filter(str.isalnum, answer)).casefold() == question.facts["word"])


def make_task() -> GeneratedTask:
    """Return the task."""
    return GeneratedTask("spelling", _sample_question, lambda question: question.answer, score_spelling)
