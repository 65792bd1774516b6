"""The models of one server: their names."""

from pathlib import Path

import pytest

from fledgling.config import UserError
from fledgling.serve.services import find_free_name, require_other_name


def test_every_checkpoint_of_a_server_has_a_name_of_its_own():
    taken: list[str] = []
    for stage in ("rl", "sft", "sft", ""):
        taken.append(find_free_name("quickstart", stage, taken))
    assert taken == ["quickstart", "quickstart-sft", "quickstart-sft-3", "quickstart-4"]


def test_an_adapter_has_another_name_than_its_model():
    require_other_name("quickstart", {"poet": Path("poet")})
    with pytest.raises(UserError, match="--adapter quickstart=poet: quickstart is the name of the model without"):
        require_other_name("quickstart", {"quickstart": Path("poet")})
