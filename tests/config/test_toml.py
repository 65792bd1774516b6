"""A recipe that is written is read back, whatever its texts are."""

import tomllib
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fledgling.config import Recipe, RunConfig, StageConfig, dump_toml


@given(
    out=st.text(st.characters(codec="utf-8"), max_size=20),
    names=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), st.floats(0.01, 1e300), max_size=3),
)
def test_any_text_survives_writing(out, names):
    recipe = replace(Recipe(), run=RunConfig(out=out), pretrain=StageConfig(mixture=names))
    read = tomllib.loads(dump_toml(recipe))
    assert read["run"]["out"] == out and read["pretrain"]["mixture"] == names
