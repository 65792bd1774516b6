"""Settings that a route's bodies lack are rejected by name where they ask for something."""

import pytest
from pydantic import BaseModel, ConfigDict

from fledgling.serve.other_settings import NEUTRAL_VALUES, OTHER_SETTINGS, reject_fields
from fledgling.serve.schemas import BadRequest


class Body(BaseModel):
    model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_setting_is_rejected_with_its_hint_unless_it_asks_for_nothing(name):
    for value in (None, False, "", [], {}, NEUTRAL_VALUES.get(name)):
        reject_fields(Body(**{name: value}), OTHER_SETTINGS, {})
    with pytest.raises(BadRequest, match=f"{name}: not supported; use options") as error:
        reject_fields(Body(**{name: 3, "keep_alive": 5}), OTHER_SETTINGS, {name: "use options"})
    assert error.value.param == name
