"""The size of a grammar's terminals: known before they are compiled, for the text in every notation."""

import time

import pytest

from fledgling.infer.grammar import MAX_TERMINALS, GrammarCompiler, GrammarError
from fledgling.infer.grammar_size import MAX_SIZE, measure_grammar, measure_pattern

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def compiler(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.bos)


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("abc", 3),
        (r"[a-z\]]+\d{3}", 1 + 1 + 3),
        ("(ab|c){10}", 40),
        ("(?:a{10}){10,20}", 200),
        ("((a{99}){99}){99}", 99**3),
        (r"\(a{2}\)[(]{3}", 7),
        ("a{999999999999}{99999}", MAX_SIZE),
        ("(a))(", 1),
    ],
)
def test_the_size_of_a_pattern_is_that_of_its_repetitions(pattern, size):
    assert measure_pattern(pattern) == size


@pytest.mark.parametrize(
    ("grammar", "size"),
    [
        ('start: A\nA: B B\nB: "ab" /c{5}/', 1 + 14),
        ('start: A A b\nb: A{9} "x"{9}\nA: "aa"', 3 + 2 + 2),
        ('start: A // A A A\nA: ("a"~2..4 "b"){10}', 1 + 50),
        ('start: A\nA: A "b"', 1 + 2),
        ('start: %json {"pattern": "a{7}", "properties": {"x": {"patternProperties": {"b{8}": {}}}}}', 15),
        ('start: %json {"pattern": ', 0),
        ("no rule", 0),
    ],
)
def test_terminals_are_written_out_and_rules_are_shared(grammar, size):
    assert measure_grammar(grammar) == size


@pytest.mark.parametrize(
    "text", ["[", "(", '\\"', "\\/", "[\\", "a[", "{", "%json {", "A ", "\n", "start: A\n", "/*", '"\\']
)
@pytest.mark.parametrize("start", ["", 'start: "', "start: /", "start: %json {"])
def test_a_text_that_repeats_a_beginning_is_measured_in_linear_time(text, start):
    for measure in (measure_pattern, measure_grammar):
        times = []
        for size in (8_000, 16_000):
            repeated = start + text * (size // len(text))
            before = time.thread_time()
            measure(repeated)
            times.append(time.thread_time() - before)
        assert times[1] < 3 * times[0] + 0.2  # seconds that do not depend on the length


def double(name: str, levels: int, sign: str) -> str:
    rules = [f"{name}{level}{sign} {name}{level + 1} {name}{level + 1}" for level in range(levels)]
    return "\n".join([f"{'root' if '=' in sign else 'start'}{sign} {name}0", *rules, f'{name}{levels}{sign} "a"'])


LARGE = {
    "lark": lambda compiler: compiler.compile_lark(double("R", 18, ":")),
    "gbnf": lambda compiler: compiler.compile_gbnf(double("r", 19, " ::=")),
    "endless": lambda compiler: compiler.compile_lark(double("R", 300, ":")),
    "counts": lambda compiler: compiler.compile_gbnf('root ::= r{300}\nr ::= s{300}\ns ::= "a"{300}'),
    "pattern": lambda compiler: compiler.compile_regex("((a{100}){100}){100}"),
    "schema": lambda compiler: compiler.compile_schema({"type": "string", "pattern": "^(a{3000}){3000}$"}),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_short_text_of_a_large_grammar_is_rejected_before_it_is_compiled(compiler, monkeypatch, name):
    monkeypatch.setattr(compiler, "_compile", lambda *args: pytest.fail("was compiled"))
    before = time.thread_time()
    with pytest.raises(GrammarError, match=f"written out; expected at most {MAX_TERMINALS:,}"):
        LARGE[name](compiler)
    assert time.thread_time() - before < 1


def test_shared_rules_and_long_texts_are_no_large_grammars(compiler):
    compiler.compile_lark(double("r", 18, ":"))
    compiler.compile_lark(double("R", 12, ":"))
    compiler.compile_regex("[a-z]{1000}")
    compiler.compile_schema({"type": "string", "maxLength": 100_000})


def test_a_grammar_that_takes_too_long_is_not_called_empty(compiler, monkeypatch):
    monkeypatch.setattr("fledgling.infer.grammar.ALLOWED_SECONDS", -1.0)
    with pytest.raises(GrammarError, match="ms a token, expected at most"):
        compiler.compile_regex("a")
    monkeypatch.undo()
    with pytest.raises(GrammarError, match="no text satisfies it"):
        compiler.compile_regex(r"[^\s\S]")
