"""engine.wasm is compiled from the engine.cpp of the tree."""

from importlib.util import find_spec

import pytest

from fledgling.export.wasm import COMPILED, SECTION, SOURCE, compile_engine, hash_source
from fledgling.kernels.format import LEVELS_4BIT


def test_the_compiled_file_names_the_source_of_the_tree():
    assert COMPILED.read_bytes().endswith(SECTION + hash_source()), "python -m fledgling.export.wasm"


@pytest.mark.skipif(find_spec("ziglang") is None, reason="the compiler is not installed: pip install fledgling[wasm]")
def test_the_compiler_writes_the_file_of_the_tree():
    assert compile_engine() == COMPILED.read_bytes()


def test_the_source_has_the_levels_of_the_format():
    assert f"({', '.join(map(str, LEVELS_4BIT))})" in SOURCE.read_text(encoding="utf-8")
