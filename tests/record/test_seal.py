"""The seal: a hash of each complete line, and of the files that say what a stage is made of."""

import pytest

from fledgling.record.seal import find_changed_lines, hash_lines, hash_run_files, read_seal, seal_run, seal_stage


def test_a_line_that_is_being_written_is_not_sealed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    assert len(hash_lines(path)) == 2 and hash_lines(tmp_path / "none") == []


def test_what_happened_to_lines_is_reported():
    sealed = list("abcd")
    assert find_changed_lines(sealed, list("abcdef")) == ([], 2)
    assert find_changed_lines(sealed, list("axcd")) == (["line 2 changed"], 0)
    assert find_changed_lines(sealed, list("ad")) == (["lines 2 to 3 removed"], 0)
    assert find_changed_lines(sealed, list("abxcd")) == (["line 3 inserted"], 0)
    assert find_changed_lines(sealed, []) == (["lines 1 to 4 removed"], 0)


def test_a_seal_has_the_record_the_manifests_and_the_tokenizer(tmp_path):
    for name in ("a/checkpoints/step-00000001/manifest.json", "data/x/manifest.json", "tokenizer/tokenizer.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "a/metrics.jsonl").write_text("{}\n{}\n")
    seal_stage(tmp_path / "a")
    seal = read_seal(tmp_path / "a")
    assert len(seal["lines"]["metrics"]) == 2 and seal["lines"]["evals"] == []
    assert len(seal["files"]) == 3
    (tmp_path / "a/seal.json").write_text('{"lines": 3}')
    assert read_seal(tmp_path / "a") is None


GIVEN = (
    "init/source.json",
    "init/step-00000000/manifest.json",
    "init_adapter/adapter_config.json",
    "init_adapter/adapter_model.safetensors",
    "recipe.toml",
)


@pytest.mark.parametrize("changed", GIVEN)
def test_given_weights_and_a_given_adapter_are_in_the_seal_of_the_run(changed, tmp_path):
    for name in GIVEN:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    seal_run(tmp_path)
    sealed = read_seal(tmp_path)
    assert sealed is not None and set(sealed["files"]) == set(GIVEN)
    (tmp_path / changed).write_text("[]")
    now = hash_run_files(tmp_path)
    assert [name for name, digest in sealed["files"].items() if now[name] != digest] == [changed]
