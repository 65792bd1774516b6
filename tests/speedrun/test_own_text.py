"""How much of the user's own text a run prepares, from the files that are there."""

from dataclasses import replace

from fledgling.config import load_recipe
from fledgling.speedrun import own_text
from fledgling.speedrun.own_text import count_document_bytes, count_own_text


def test_a_text_counts_once_for_the_first_stage_that_reads_it(tmp_path, monkeypatch):
    texts = [tmp_path / name for name in ("first.txt", "second.txt", "large.txt")]
    for text, size in zip(texts, (1_000, 2_000, 5_000), strict=True):
        text.write_text("a line of words\n" * (size // 16))
    sizes = [text.stat().st_size for text in texts]
    recipe = load_recipe("quickstart")
    first, second, large = ({str(text): 1.0} for text in texts)
    recipe = replace(
        recipe,
        tokenizer=replace(recipe.tokenizer, sources=(str(texts[0]),), max_characters=500),
        pretrain=replace(recipe.pretrain, mixture=first | {"embedded": 1.0, "counting": 0.5}),
        midtrain=replace(recipe.midtrain, mixture=first | second | {str(tmp_path / "absent.txt"): 1.0}),
        sft=replace(recipe.sft, mixture=second | large),
    )
    monkeypatch.setattr(own_text, "MAX_IN_MEMORY_BYTES", 4_000)
    own = count_own_text(recipe)
    assert (own["pretrain"].small, own["pretrain"].trained) == (sizes[0], 500)
    assert (own["midtrain"].small, own["midtrain"].trained) == (sizes[1], 0)
    assert (own["sft"].small, own["sft"].large) == (0, sizes[2])
    assert (
        count_document_bytes(recipe.run, str(tmp_path / "absent.txt"))
        == count_document_bytes(recipe.run, "embedded")
        == 0
    )
