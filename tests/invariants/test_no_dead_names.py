"""Nothing in the package is there for its tests alone: it, benchmarks or the docs use every public name."""

import re
from collections import Counter
from collections.abc import Iterable

from tests.invariants.structure import PACKAGE, ROOT, read_sources

# Called by a library by their names: transformers, lm-evaluation-harness, io, uvicorn, jinja2.
OF_LIBRARIES = {
    *("base_model_prefix", "get_input_embeddings", "get_output_embeddings", "loglikelihood", "loglikelihood_rolling"),
    *("readinto", "send_400_response", "intercepted_binops", "wrap_str_format"),
}
WORD = re.compile(r"[A-Za-z_]\w*")
DOCSTRING = re.compile(r'(\A|:\n) *r?"""(?:.|\n)*?"""')
# A function or class that no decorator with arguments registers; a variable of a module or class; a field.
FUNCTION = re.compile(r"(?<!\)\n)^ *(?:async )?(?:def|class) ([a-zA-Z]\w*)", re.MULTILINE)
VARIABLE = re.compile(r"^(?: {4})?([a-zA-Z]\w*)(?:: [^=\n]+)? = ", re.MULTILINE)
FIELD = re.compile(r"^ {4}([a-zA-Z]\w*): [^=\n]+$", re.MULTILINE)
KINDS = (FUNCTION, VARIABLE, FIELD)


def unused_names(defining: dict[str, str], using: Iterable[str], words: set[str]) -> list[str]:
    """Returns MODULE: NAME of every public name that no module uses and that is not among the words of other files.

    A use is any word in code, other than the one that defines the name; docstrings are none.
    """
    code = {module: DOCSTRING.sub(r"\1", text) for module, text in defining.items()}
    counts = Counter(word for text in [*code.values(), *using] for word in WORD.findall(text))
    defined = [(module, n) for module, text in code.items() for kind in KINDS for n in kind.findall(text)]
    counts.subtract(name for _, name in defined)
    return [f"{module}: {name}" for module, name in defined if counts[name] <= 0 and name not in words]


def test_every_public_name_is_used_outside_the_tests():
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    pages += [path for suffix in ("html", "js", "toml") for path in PACKAGE.rglob(f"*.{suffix}")]
    texts = (path.read_text(encoding="utf-8") for path in pages if "vendor" not in path.parts)
    words = {word for text in texts for word in WORD.findall(text)}
    unused = unused_names(read_sources(), read_sources(ROOT / "benchmarks").values(), words)
    assert [name for name in unused if name.rpartition(" ")[2] not in OF_LIBRARIES] == []


def test_the_check_sees_a_dead_name():
    function = 'def f():\n    """Calls g."""\n    return A'
    module = f"A = 1\n{function}\nclass C:\n    x: int = 0\n    def g(self): return self.x"
    assert unused_names({"m": module}, [], {"C"}) == ["m: f", "m: g"]
    assert unused_names({"m": module}, ["from m import f as h\nh().g()"], {"C"}) == []
