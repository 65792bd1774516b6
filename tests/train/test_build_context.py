"""Machines without a shared disk: each prepares its own copy; copies that differ are one error on every rank."""

from dataclasses import replace
from pathlib import Path

from fledgling.config import UserError
from fledgling.runtime.world import World
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.build_context import require_same_data
from fledgling.train.prepare import DataPreparer
from tests.ranks import on_ranks
from tests.tiny import tiny


def prepare_on_two_machines(folder: str, recipe, failing: int, other_text: bool) -> tuple[str, str]:
    """Prepares as one of four ranks on two machines; returns the outcome, and how often this rank prepared what."""
    world = World.start("cpu")
    world = replace(world, local_rank=world.rank % 2, local_size=2)
    disk = Path(folder) / f"machine{world.rank // 2}"
    notices: list[str] = []
    preparer = DataPreparer(recipe, disk, notices.append)
    outcome = "completed"
    try:
        with world.local_main_process_first():
            if world.rank == failing:
                raise UserError("no room")
            tokenizer = preparer.load_or_train_tokenizer()
            source = recipe.tokenizer.sources[0]
            if other_text and world.rank // 2 == 1:
                train, held_out = preparer.documents.read_split(source)
                preparer.documents._documents[source] = (train[1:], held_out)
            preparer.documents.prepare_shards(source, tokenizer)
        require_same_data(world, preparer, tokenizer)
        assert isinstance(tokenizer, Tokenizer)
    except (UserError, SystemExit) as end:
        outcome = str(end)
    return (
        outcome,
        f"{sum('training a tokenizer' in line for line in notices)} {sum('(train)' in line for line in notices)}",
    )


def test_the_first_rank_of_each_machine_prepares_for_the_others(tmp_path):
    outcomes = on_ranks(4, prepare_on_two_machines, str(tmp_path), tiny(tmp_path), -1, False)
    assert outcomes == [("completed", "1 1"), ("completed", "0 0"), ("completed", "1 1"), ("completed", "0 0")]


def test_copies_that_differ_are_an_error_on_every_rank(tmp_path):
    outcomes = on_ranks(4, prepare_on_two_machines, str(tmp_path), tiny(tmp_path), -1, True)
    assert all("the tokenized text of rank 2 is not that of rank 0" in outcome for outcome, _ in outcomes), outcomes


def test_a_machine_that_cannot_prepare_ends_all_ranks(tmp_path):
    outcomes = on_ranks(4, prepare_on_two_machines, str(tmp_path), tiny(tmp_path), 2, False)
    assert [outcome for outcome, _ in outcomes] == ["1", "1", "no room", "1"]
