"""Arithmetic: a sum, a difference or a product in words, answered through the calculator.

The one idea: the model need not add. It finds two numbers and an operation in the sentence, writes the
expression between python_start and python_end, and repeats what comes back, so the skill is reading.

What it is not: no word problems with hidden steps, no division. The expression keeps the order of the
numbers in the sentence, but for turns like "take 4 from 9", where order is what is asked.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache

from fledgling.tasks.skills.templates import decorate_template, expand_patterns, sample_plural_noun
from fledgling.tasks.task import PRACTICE, TRAIN, GeneratedTask, Question, is_held_out

# In a template the expression is always {a} op {b}; a template with {b} before {a} is a reversal.
_NOUN_PHRASES = {
    "+": (
        "[the sum of|the total of|the sum total of|the addition of|the sum you get from] {a} and {b}",
        "{a} [plus|+|added to|and then plus|increased by|with an added] {b}",
        "[the result of|the outcome of] [adding {a} and {b}|adding {a} to {b}|summing {a} and {b}|{a} + {b}]",
        "[the value of|the answer to|the answer of] [{a} + {b}|{a} plus {b}]",
        "{a} and {b} [added|added up|added together|put together|summed|combined|in total|together|in all]",
        "{a}+{b}",
        "the sum [|of the numbers|of the two numbers] {a} and {b}",
        "the [combined|added] [amount|value] of {a} and {b}",
        "{a} with {b} [more|added|on top]",
    ),
    "-": (
        "[the difference of|the difference between] {a} and {b}",
        "{a} [minus|-|take away|less|decreased by|reduced by|with a loss of] {b}",
        "[the result of|the outcome of] [{a} minus {b}|{a} - {b}|subtracting {b} from {a}|taking {b} from {a}]",
        "[the value of|the answer to|the answer of] [{a} - {b}|{a} minus {b}]",
        "{a} [with {b} taken away|with {b} removed|with {b} subtracted|without {b}|after losing {b}]",
        "{a}-{b}",
        "what remains of {a} [without|minus|less] {b}",
        "the difference [|of the numbers|when you go] from {a} to {b}",
        "[what is left of|the rest of] {a} [minus|after taking away] {b}",
        "{b} [less than|subtracted from|taken from|taken away from] {a}",
        "the subtraction [of {b} from {a}|{a} minus {b}|{a} - {b}]",
    ),
    "*": (
        "[the product of|the multiplication of|the product you get from] {a} and {b}",
        "{a} [times|*|x|multiplied by|multiplied with] {b}",
        "[the result of|the outcome of] [multiplying {a} and {b}|multiplying {a} by {b}|{a} times {b}|{a} * {b}]",
        "[the value of|the answer to|the answer of] [{a} * {b}|{a} times {b}]",
        "{a} and {b} [multiplied|multiplied together]",
        "{a}*{b}",
        "the product [|of the numbers|of the two numbers] {a} and {b}",
        "{a} [groups|rows|bags|boxes|sets|lots] of {b}",
        "{a} [copies|repeats] of {b} [added up|in all]",
        "{a} by {b} [multiplied|as a product]",
    ),
}
_ABOUT_NOUN_PHRASE = (
    "[what is|what's|whats|how much is|which number is|what do you get for|what number is|"
    "do you know|what would be] #?",
    "[what does|how much does] # [equal|make|give|come to|amount to]?",
    "[calculate|compute|work out|find|find out|give|give me|tell me|evaluate|determine|figure out|solve|show me] #",
    "[can you|could you|would you|will you|can i ask you to] [calculate|compute|work out|find|tell me|give me] #?",
    "[i need|i want|i would like|i am looking for|let me have|state|write down|report|say] #",
    "[i want to|i have to|help me|help me to|try to|you should] [know|calculate|find|work out|compute] #",
    "# [is what|is how much|equals what|makes what|gives what|=|= ?|is|equals]",
    "#[|?| = ?|, how much is that?|, what is it?|, what does that make?|, what is the result?|: the answer?]",
    "[use|take|run|open] [the|your|a] [calculator|python|tool] [for|to get|to find|and give me] #",
)
_VERB_PHRASES = {
    "+": (
        "[add|sum|add up|sum up|total|combine|add together] {a} and {b}",
        "[add|join] {a} [to|with|onto] {b}",
        "[put|take] {a} and {b} together",
        "[increase|raise] {a} by {b}",
        "[start with|take|begin with|start at|start from|write] {a} and add {b}",
        "do {a} [plus|+] {b}",
        "do the [sum|addition] {a} [plus|+|and] {b}",
    ),
    "-": (
        "[subtract|take|take away|remove|deduct] {b} from {a}",
        "[decrease|reduce|lower] {a} by {b}",
        "[start with|take|begin with|start at|start from|write] {a} and [subtract|take away|remove|deduct] {b}",
        "do {a} [minus|-] {b}",
        "do the [difference|subtraction] {a} [minus|-|and] {b}",
        "subtract from {a} the number {b}",
    ),
    "*": (
        "multiply {a} [by|and|with|times] {b}",
        "[start with|take|begin with|start at|start from|write] {a} and multiply [|it] by {b}",
        "[take|do|count] {a} times {b}",
        "do {a} [times|*|x] {b}",
        "do the [product|multiplication] {a} [times|*|and] {b}",
        "multiply together {a} and {b}",
    ),
}
_ABOUT_VERB_PHRASE = (
    "[|please|now|just|quickly|kindly|let us|let's] #",
    "[can|could|would|will] you # [|for me|and tell me the answer]?",
    "[i want you to|i would like you to|you have to|help me|try to|i need you to|we have to|i must] #",
    "# and [tell me the result|give me the answer|show me the result|say what you get|write the answer]",
    "[what do i get|what do you get|what happens|what is the answer|what comes out] [if i|if you|when i|when you] #?",
    "[if i|if you|when you|suppose i|when we|say you|suppose we] #, [what do i get|what is the result|what is it]?",
    "#[, what is the result?|. what is it?|: what do you get?|. what is the answer?|. the answer is]",
    "[how do i|how do you|what is it to] #?",
)
# The numbers in one half of the sentence, the operation in the other; # is one of `_THEM` or `_OPERATION`.
_NUMBERS_FIRST = (
    "[here are|i have|take|we have|given|consider|use|for|with|you see] [two numbers, |"
    "the numbers |]{a} and {b}"
    "[. |, |: |; ]#",
    "[the first number is|the first is|one number is|first|i start with] {a}[,| and] "
    "[the second number is|the second is|the other is|then] {b}[. |, |; ]#",
    "{a}, {b}[: |. |, | - ]#",
)
_THEM = {
    "+": "[add them|sum them|add them up|what is the sum?|what is their sum?|their sum?|the total?|"
    "what is the total?|put them together|their total|how much in all?|sum up both|addition|"
    "now add|add both]",
    "-": "[subtract|subtract the second from the first|what is the difference?|their difference?|"
    "the difference?|take the second away|the first minus the second|subtraction|how much is left?|"
    "what remains?|now subtract]",
    "*": "[multiply them|multiply both|what is the product?|what is their product?|their product?|"
    "the product|multiply|multiplication|the first times the second|now multiply|"
    "multiply the first by the second]",
}
_OPERATION_FIRST = (
    "#[: |, | - | these: | these two: | these numbers: | of these: | for the numbers ]{a}[, | and | then |; ]{b}",
    "[do|try|i need|make|show me|give me|work out|find] [a|an|the|this] #[: |, | with | for | using | on ]{a} and {b}",
)
_OPERATION = {
    "+": ("[add|sum|sum up|addition|adding|summing|total|plus]", "[sum|addition|total]"),
    "-": ("[subtract|subtraction|subtracting|difference|minus]", "[difference|subtraction]"),
    "*": ("[multiply|multiplication|multiplying|product|times]", "[product|multiplication]"),
}
_GERUNDS = {
    "+": "[adding|summing|totalling|combining] {a} and {b}",
    "-": "[subtracting {b} from {a}|taking {b} away from {a}|taking {b} from {a}|removing {b} from {a}|"
    "reducing {a} by {b}]",
    "*": "[multiplying {a} and {b}|multiplying {a} by {b}|multiplying {a} with {b}]",
}
_ABOUT_GERUND = (
    "[by|after|when|upon|from] # [i get what|we get|you find|what comes out|what is the result]?",
    "[i am|we are|they are|she is|try|start] #[, what is the result|, what do i get|. what is it|. the answer]?",
    "[what does|what will|how much does] # [give|make|yield]?",
    "# [gives|yields|makes|brings|leads to|means] [|what|which number]?",
)
# Small stories; {thing} stands for whatever is counted.
_HAS = "[i have|we have|you have|tom has|anna has|she has|he has|there are|the shop has|our team has]"
_HOW_MANY = "[how many in total|how many in all|how many are there|how many together|what is the total]"
_FIRST = "[there were|we saw|he counted|it had|the jar had|a box had] {a} {thing}[, then|; later|. then|. after that]"
_HOW_MANY_LEFT = "[how many are left|how many remain|what is left|what remains|how many now]"
_STORIES = {
    "+": (
        f"{_HAS} {{a}} {{thing}} and [get|buy|find|receive|make|collect|win] {{b}} more. {_HOW_MANY}?",
        f"{{a}} {{thing}} [and|plus|with] {{b}} [more|others|{{thing}}], {_HOW_MANY}?",
        f"{_FIRST} {{b}} "
        "[more came|more were added|were put in|joined|came on top|were brought]. [how many now|how many are there]?",
        f"[one|the first] [box|bag|team|day] [has|had|gives] {{a}} {{thing}}, [the other|the next] {{b}}. {_HOW_MANY}?",
        f"[after|when] [putting|throwing|pouring|joining] {{a}} {{thing}} [to|in with] the {{b}}, {_HOW_MANY}?",
        f"[suppose|say|think] [i|you|we|somebody] [put|lay] {{a}} {{thing}} and {{b}} {{thing}} together, {_HOW_MANY}?",
        "[it grows|it goes up|it rises|he climbs|she moves up] from {a} by {b}, [what is it now|where does it end]?",
    ),
    "-": (
        f"{_HAS} {{a}} {{thing}} and [lose|give away|sell|eat|spend|drop|break] {{b}}. {_HOW_MANY_LEFT}?",
        f"{{b}} of [|the |my |our ]{{a}} {{thing}} are [gone|sold|lost|taken|broken|eaten], {_HOW_MANY_LEFT}?",
        f"{_FIRST} {{b}} [left|went away|were taken out|were removed|were sold|fell out]. {_HOW_MANY_LEFT}?",
        f"[take|pick|carry|throw] {{b}} {{thing}} [away from|off|from] [the|my|these] {{a}}, {_HOW_MANY_LEFT}?",
        f"[pay|spend|use|give away] {{b}} [of|from] [|the |my |our ]{{a}} {{thing}}, {_HOW_MANY_LEFT}?",
        f"from {{a}} {{thing}} {{b}} [are|were] [sold|used|lost|taken], {_HOW_MANY_LEFT}?",
        "[i have|tom has|she has|one team has] {a} {thing}, [you have|anna has|the other has] {b}. "
        "how many more [is that|are there|do i have]?",
        "how much [more|larger|greater|higher|longer|older|heavier] is {a} than {b}?",
        "{a} is how much [more|larger|greater|higher|longer|older|heavier] than {b}?",
        "how [many|much] more [|{thing} ][are|is|makes] {a} than {b}?",
        "[it sinks|it goes down|it falls|he climbs down] from {a} by {b}, [what is it now|where does it end]?",
    ),
    "*": (
        f"{_HAS} {{a}} [bags|boxes|packs|rows|shelves] [with|of] {{b}} {{thing}} each. {_HOW_MANY}?",
        f"{{a}} [people|children|players|workers] with {{b}} {{thing}} each, {_HOW_MANY}?",
        f"each of [|the ]{{a}} [boxes|rooms|tables|cars|trees] [has|holds|gets|takes] {{b}} {{thing}}. {_HOW_MANY}?",
        f"{{a}} times [i|we|you|she] [get|buy|find|add|take] {{b}} {{thing}}, {_HOW_MANY}?",
        f"[count|take|lay down|add up] {{a}} {{thing}} {{b}} times, {_HOW_MANY}?",
        "[one|a] [book|ball|cake] costs {a} {thing}, [what do|how much do|how many do] {b} [cost|make|come to]?",
        "[a|the] [wall|floor|sheet|yard] [is|measures] {a} by {b}, [what is the area|how large is it]?",
    ),
}
_PRACTICE = {
    "+": (
        "We are at {a} now; another {b} gets added, so we are at?",
        "Let the calculator handle {a} plus {b} and read me its display.",
        "The two numbers on the board are {a} and {b}. State their sum.",
        "Is there a quick way to total up {a} and {b}? Show the number.",
        "Addition exercise: first number {a}, second number {b}.",
        "Whatever {a} + {b} may be, I need that figure.",
        "[Yesterday|Last week|In May] the [shop|club|team] had {a} [members|visitors|orders], [today|since then] "
        "{b} joined them. [What is the count|How big is it] now?",
        "[My|Our] [meter|counter|clock] showed {a} and went up by {b}; what does it show?",
        "Which [figure|result] do {a} plus {b} [produce|lead to|end in]?",
        "A [rope|road|train] of {a} metres grows by {b} metres and is then how long?",
        "[Two|Both] [parcels|bags] weigh {a} and {b} kilos; [on the scale together they show|jointly they weigh]?",
        "[Please |]fill the blank: {a} + {b} = ___",
        "To {a} somebody [adds|joins|puts] {b}, which makes",
        "Sum wanted! Numbers: {a} as well as {b}",
    ),
    "-": (
        "We are at {a} now; then {b} gets subtracted, so we are at?",
        "Let the calculator handle {a} minus {b} and read me its display.",
        "The two numbers on the board are {a} and {b}. State their difference.",
        "Out of {a} tickets {b} were taken away. Which number is left over?",
        "Subtraction exercise: first number {a}, second number {b}.",
        "Whatever {a} - {b} may be, I need that figure.",
        "[Yesterday|Last week|In May] the [shop|club|team] had {a} [members|visitors|orders], [today|since then] "
        "{b} left it. [What is the count|How big is it] now?",
        "[My|Our] [meter|counter|clock] showed {a} and went down by {b}; what does it show?",
        "Which [figure|result] do {a} minus {b} [produce|lead to|end in]?",
        "[Cut|Saw|Tear] {b} metres off [the|a] [rope|board|ribbon] of {a} metres; its length is then?",
        "[They|The guests|We] ate {b} of the {a} [grapes|plums|buns] on the table, which leaves",
        "[Please |]fill the blank: {a} - {b} = ___",
        "[Ann|The red team] has {a} points, [Ben|the blue team] {b}. How many points [lie between them|ahead]?",
        "Difference wanted! Numbers: {a} as well as {b}",
        "How many [years|days|pages] more are {a} than {b}?",
    ),
    "*": (
        "We are at {a} now; this is multiplied by {b}, so we are at?",
        "Let the calculator handle {a} times {b} and read me its display.",
        "The two numbers on the board are {a} and {b}. State their product.",
        "A wall is {a} tiles wide and {b} tiles high. Multiply to get all tiles.",
        "Multiplication exercise: first number {a}, second number {b}.",
        "Whatever {a} * {b} may be, I need that figure.",
        "[My|Our] [meter|counter|clock] showed {a} and now shows that {b} times over; what does it show?",
        "Which [figure|result] do {a} times {b} [produce|lead to|end in]?",
        "A [ticket|chair|lamp] costs {a}; somebody buys {b} of them and pays?",
        "[There are|We count] {a} [shelves|trays|pages] holding {b} [cups|rolls|lines] apiece, so altogether?",
        "[Please |]fill the blank: {a} * {b} = ___",
        "The [field|garden|hall] is {a} metres long, {b} metres wide. Its area?",
        "Product wanted! Numbers: {a} as well as {b}",
        "{a} [workers|machines] make {b} [shoes|screws] every day; what does [a|one] day bring?",
    ),
}
_UNSEEN = {
    "+": (
        "My bill lists two items, one at {a} and one at {b}. What would the total be?",
        "Somebody wrote {a} + {b} on a napkin. What should stand after the equals sign?",
        "Which number do I reach when {b} is added to a pile of {a}?",
        "Imagine adding {a} sheep and {b} sheep; the farmer counts how many?",
        "If the first score was {a} and the second {b}, their sum must be",
        "Would you mind summing these for me: {a}, {b}",
        "I keep getting {a} plus {b} wrong, so please do it properly.",
        "The library owned {a} novels before {b} more arrived. Total now?",
    ),
    "-": (
        "A tank held {a} litres until {b} were taken away. How much stays inside?",
        "Somebody wrote {a} - {b} on a napkin. What should stand after the equals sign?",
        "By how much is {a} bigger than {b}? I mean the difference.",
        "From a salary of {a} they subtract {b} for rent; the remainder is?",
        "Could the difference be given, where the first is {a} and the second is {b}?",
        "I keep getting {a} minus {b} wrong, so please do it properly.",
        "Remove {b} sheep out of the {a} we own and say how many we keep.",
        "Between {a} and {b} lies what difference?",
    ),
    "*": (
        "Every one of the {a} buses carries {b} passengers. Multiply them out for us.",
        "Somebody wrote {a} * {b} on a napkin. What should stand after the equals sign?",
        "Which product belongs to the factors {a} and {b}?",
        "Repeating {a} exactly {b} times brings us to what number?",
        "With {a} as one factor and {b} as another, multiplication yields",
        "I keep getting {a} times {b} wrong, so please do it properly.",
        "Would you mind multiplying these for me: {a}, {b}",
        "Each side measures {a} and {b}; their product is the area, namely?",
    ),
}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_OPERATORS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


@lru_cache(maxsize=1)
def _train_templates() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Return the training cores of each operation, in families of equal weight: a third or so of them stories."""
    families = {}
    for sign in _OPERATORS:
        nouns, verbs = expand_patterns(*_NOUN_PHRASES[sign]), expand_patterns(*_VERB_PHRASES[sign])
        about = [frame.replace("#", noun) for frame in expand_patterns(*_ABOUT_NOUN_PHRASE) for noun in nouns]
        told = [frame.replace("#", verb) for frame in expand_patterns(*_ABOUT_VERB_PHRASE) for verb in verbs]
        gerunds = expand_patterns(*(frame.replace("#", _GERUNDS[sign]) for frame in _ABOUT_GERUND))
        split = expand_patterns(
            *(frame.replace("#", _THEM[sign]) for frame in _NUMBERS_FIRST),
            *(frame.replace("#", word) for frame, word in zip(_OPERATION_FIRST, _OPERATION[sign], strict=True)),
        )
        short = (*nouns, *verbs)
        stories = tuple(expand_patterns(story) for story in _STORIES[sign])
        plain = (tuple(about), tuple(about), tuple(told), gerunds, split, split, short)
        families[sign] = (*plain, *plain, *stories)
    return families


@lru_cache(maxsize=1)
def _practice_templates() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Return the practice templates of each operation, grouped by pattern: a pattern is drawn first, then a reading."""
    return {sign: tuple(expand_patterns(pattern) for pattern in patterns) for sign, patterns in _PRACTICE.items()}


def list_templates(which: str) -> tuple[str, ...]:
    """Return all templates of a set: TRAIN (before openings and closings), PRACTICE or UNSEEN."""
    if which == TRAIN:
        return tuple({core: None for groups in _train_templates().values() for group in groups for core in group})
    if which == PRACTICE:
        return tuple(core for groups in _practice_templates().values() for group in groups for core in group)
    return tuple(core for group in _UNSEEN.values() for core in group)


def _sample_number(rng: random.Random, sign: str) -> int:
    """Return a number whose count of digits is drawn first, so that short and long ones mix."""
    digits = rng.choice((1, 2, 2, 2) if sign == "*" else (1, 2, 2, 2, 3, 3))
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def _sample_question(rng: random.Random, which: str, evaluation: bool) -> Question:
    sign = rng.choice("+-*")
    while True:
        a, b = _sample_number(rng, sign), _sample_number(rng, sign)
        if is_held_out("pair", sign, min(a, b), max(a, b)) == evaluation:
            break
    if sign == "-" and a < b and rng.random() < 0.8:  # mostly answers above zero, as people ask
        a, b = b, a
    if which == TRAIN:
        core = rng.choice(rng.choice(_train_templates()[sign]))
        template = decorate_template(core, rng)
    else:
        core = template = rng.choice(rng.choice(_practice_templates()[sign]) if which == PRACTICE else _UNSEEN[sign])
    facts = {"wording": core, "sign": sign, "a": a, "b": b}
    prompt = template.format(a=a, b=b, thing=sample_plural_noun(rng))
    return Question("arithmetic", prompt, str(_OPERATORS[sign](a, b)), facts)


def _write_reply(question: Question) -> list[dict]:
    facts = question.facts
    return [
        {"type": "python", "text": f"{facts['a']}{facts['sign']}{facts['b']}"},
        {"type": "output", "text": question.answer},
        {"type": "text", "text": question.answer},
    ]


def score_last_number(question: Question, answer: str) -> float:
    """Return 1.0 when the last number in `answer` equals the expected one; `1,234.` equals `1234`."""
    numbers = _NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3})", "", answer))
    return float(bool(numbers) and float(numbers[-1]) == float(question.answer))


def make_task() -> GeneratedTask:
    """Return the task."""
    return GeneratedTask("arithmetic", _sample_question, _write_reply, score_last_number)
