"""Money needs a price, and is said with the digits that count."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from luthier.plan.rank import price_of, within
from luthier.plan.words import price
from luthier.spec.objective import Budget


@pytest.mark.parametrize("given", [{"money": 1.0}, {"currency": "EUR"}])
def test_money_and_currency_need_a_price(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(given))} needs price_per_hour, what an hour"):
        Budget.model_validate(given)
    Budget.model_validate({**given, "price_per_hour": 0.5})


def test_money_is_part_of_what_fits() -> None:
    budget = Budget(price_per_hour=2.0, money=1.0)
    assert price_of(budget, seconds=1800) == 1.0
    assert within(budget, seconds=1800, peak_memory_gib=99)
    assert not within(budget, seconds=1801, peak_memory_gib=0)
    assert price_of(Budget(), seconds=1800) is None


@pytest.mark.parametrize(
    ("money", "words"), [(1.2, "1.20 EUR"), (1234.5, "1,234.50 EUR"), (0.00417, "0.0042 EUR"), (0.0, "0.00 EUR")]
)
def test_prices_are_said_with_the_digits_that_count(money: float, words: str) -> None:
    assert price(money, "EUR") == words
    assert price(money, None) == words.removesuffix(" EUR")
