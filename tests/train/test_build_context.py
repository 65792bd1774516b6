"""Machines without a shared disk: each prepares its own copy; copies that differ are one error on every rank."""

from dataclasses import replace
from pathlib import Path

import pytest

from fledgling.config import UserError
from fledgling.runtime.world import World
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.build_context import require_same_data
from fledgling.train.data_preparer import DataPreparer
from tests.all_stages import make_all_stages_recipe
from tests.ranks import on_ranks

CASES = {"good": (-1, False), "other text": (-1, True), "no room": (2, False)}  # the failing rank, another text


def prepare_on_two_machines(folder: str, recipe) -> dict[str, tuple[str, str]]:
    """Prepares as one of four ranks on two machines, in every case in turn: starting ranks takes longer than a case."""
    world = World.start("cpu")
    world = replace(world, local_rank=world.rank % 2, local_size=2)
    return {name: prepare_once(world, f"{folder}/{name}", recipe, *case) for name, case in CASES.items()}


def prepare_once(world: World, folder: str, recipe, failing: int, other_text: bool) -> tuple[str, str]:
    """Prepares once; returns the outcome, and how often this rank prepared what."""
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


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict[str, tuple[str, str]]]:
    """What happened in each case, by rank."""
    folder = tmp_path_factory.mktemp("machines")
    return on_ranks(4, prepare_on_two_machines, str(folder), make_all_stages_recipe(folder))


def test_the_first_rank_of_each_machine_prepares_for_the_others(outcomes):
    assert [of_rank["good"] for of_rank in outcomes] == [
        ("completed", "1 1"), ("completed", "0 0"), ("completed", "1 1"), ("completed", "0 0")
    ]  # fmt: skip


def test_copies_that_differ_are_an_error_on_every_rank(outcomes):
    found = [of_rank["other text"][0] for of_rank in outcomes]
    assert all("the tokenized text of rank 2 is not that of rank 0" in outcome for outcome in found), found


def test_a_machine_that_cannot_prepare_ends_all_ranks(outcomes):
    assert [of_rank["no room"][0] for of_rank in outcomes] == ["1", "1", "no room", "1"]
