"""A copy of what is outside a run names its source, and knows whether that has changed since."""

import json

import pytest

from fledgling.train.copied_source import (
    SOURCE_FILE,
    describe_changed_source,
    read_source_name,
    stamp_source,
    write_source,
)


def write_files(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)


@pytest.mark.parametrize(
    ("place", "names", "edited"),
    [
        ("model", ("config.json", "model.safetensors"), "model.safetensors"),
        ("adapter", ("adapter_config.json", "adapter_model.safetensors"), "adapter_config.json"),
        ("checkpoint", ("manifest.json", "state.json"), "manifest.json"),
        ("run/sft/checkpoints/step-00000004", ("manifest.json",), "manifest.json"),
        (".", ("model.gguf",), "model.gguf"),
    ],
)
def test_a_source_that_has_changed_is_reported_whatever_its_form_is(place, names, edited, tmp_path):
    copied, source = tmp_path / "copy", tmp_path / "sources" / place
    write_files(copied)
    write_files(source, *names)
    name = str(source / "model.gguf" if place == "." else source)
    write_source(copied, name)
    (source / names[0]).touch()
    assert read_source_name(copied) == name and (stamp_source(source) or place == ".")
    assert describe_changed_source(copied, "adapter.init_from") == []
    (source / edited).write_text("another")
    [line] = describe_changed_source(copied, "adapter.init_from")
    assert line.startswith(f"adapter.init_from: {name} has changed since it was copied")
    for file in source.iterdir():
        file.unlink()
    assert describe_changed_source(copied, "adapter.init_from") == [], "gone is not changed"


def test_what_earlier_versions_wrote_and_nonsense_say_nothing(tmp_path):
    for values, name in (({"init_from": "a"}, "a"), ({"source": "b"}, "b"), ([1], None), ({"source": 3}, None)):
        (tmp_path / SOURCE_FILE).write_text(json.dumps(values))
        assert read_source_name(tmp_path) == name and describe_changed_source(tmp_path, "x") == []
