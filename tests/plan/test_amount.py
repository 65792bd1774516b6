"""An amount of time or money: what is none is rejected in one line, and money buys time."""

import math

import pytest

from fledgling.config import UserError
from fledgling.plan.amount import Budget, pins_size, read_budget
from fledgling.plan.hardware import find_device

H100 = find_device("h100")
RANGE = "expected a number above 0 and at most 10,000,000"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 3.0, "hours": 1.0}, "--minutes 3 and --hours 1: give one of them"),
        ({"minutes": 0.0}, f"--minutes 0: {RANGE}"),
        ({"minutes": 1e300}, f"--minutes 1e+300: {RANGE}"),
        ({"hours": math.inf}, f"--hours inf: {RANGE}"),
        ({"hours": math.nan}, f"--hours nan: {RANGE}"),
        ({"usd": -5.0}, f"--usd -5: {RANGE}"),
        ({"usd": 5.0}, "name it with --gpu"),
        ({"usd": 5.0, "device": find_device("a100")}, "the price of a100-80 is not known; give it with --price"),
        ({"usd": 5.0, "device": H100, "price": math.nan}, f"--price nan: {RANGE}"),
        ({"usd": 5.0, "device": H100, "price": -1.0}, f"--price -1: {RANGE}"),
        ({"usd": 5.0, "device": H100, "price": 0.0}, f"--price 0: {RANGE}"),
        ({"usd": 5.0, "device": H100, "price": 1e-9}, "--usd 5 at $1e-09 an hour are 5e+09 hours: expected at most"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_is_no_budget_is_rejected(options, message):
    with pytest.raises(UserError) as error:
        read_budget(**{"minutes": None, "hours": None, "usd": None} | options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_setting_of_the_models_size_leaves_no_choice():
    assert pins_size(["seed=1", "model.heads=4"]) and pins_size(["model.depth=2"]) and not pins_size(["seed=1"])
    assert pins_size(["model.kv_heads=1"]) and pins_size(["model={depth=2}"])


def test_money_buys_time_at_the_price_of_all_gpus():
    budget = read_budget(None, None, 50.0, H100, 8)
    assert budget.seconds == pytest.approx(50 / 24 * 3600) and budget.text == "--usd 50 at $24 an hour"
    assert read_budget(None, None, 8.0, find_device("l4"), 1, 0.5).seconds == 16 * 3600
    assert read_budget(None, None, None) is None


def test_an_amount_that_is_proposed_is_of_the_option_that_was_given_and_enough():
    for budget in (read_budget(0.5, None, None), read_budget(None, 0.01, None), read_budget(None, None, 0.1, H100)):
        option, amount = budget.describe(61.3).split()
        assert budget.text.startswith(option)
        again = read_budget(**{"minutes": None, "hours": None, "usd": None, option[2:]: float(amount)}, device=H100)
        assert 61.3 <= again.seconds <= 61.3 * 1.1
    assert Budget(60.0, "--minutes 1").describe(61.3) == "--minutes 1.1"
