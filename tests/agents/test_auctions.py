"""Auctions: prices by the textbook, the allocation by trying all, and nobody gains by a lie."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import members, protocol

from shoal.agents import Team, run
from shoal.agents.auctions import Bundle, Offers, sealed, vcg
from shoal.core.errors import ConfigError
from shoal.core.log import EventLog
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine

NAMES = ("ann", "bob", "cem")
GOODS = ("a", "b", "c")

bundles = st.frozensets(st.sampled_from(GOODS), min_size=1)
offers = st.dictionaries(bundles, st.integers(1, 9).map(float), max_size=3)
bids = st.fixed_dictionaries(dict.fromkeys(NAMES, offers))


def b(goods: str) -> Bundle:
    return frozenset(goods)


def best_by_trying(bids: Mapping[str, Offers]) -> float:
    """The most that any choice of at most one bundle a bidder is worth, goods given once."""
    most = 0.0
    for picked in itertools.product(*([None, *offers] for offers in bids.values())):
        goods = [good for bundle in picked if bundle for good in bundle]
        if len(goods) == len(set(goods)):
            worth = sum(offers[p] for offers, p in zip(bids.values(), picked, strict=True) if p)
            most = max(most, worth)
    return most


def utility(name: str, truth: Offers, bids: Mapping[str, Offers]) -> float:
    """What a bidder has of a sale: the worth to it of what it gets, less the price."""
    sale = vcg(bids, NAMES)
    return truth.get(sale.goods[name], 0.0) - sale.prices[name] if name in sale.goods else 0.0


def test_the_textbook_case_of_two_goods() -> None:
    # Nisan et al., Algorithmic Game Theory, ch. 11: one wants both, two want one each
    sale = vcg({"ann": {b("ab"): 10.0}, "bob": {b("a"): 7.0}, "cem": {b("b"): 6.0}}, NAMES)
    assert sale.goods == {"bob": b("a"), "cem": b("b")}
    assert sale.prices == {"bob": 10 - 6, "cem": 10 - 7}
    assert sale.worth == 13


@given(bids)
def test_the_allocation_is_worth_most_and_prices_lie_between_nothing_and_the_bid(
    bids: dict[str, Offers],
) -> None:
    sale = vcg(bids, NAMES)
    given_away = [good for bundle in sale.goods.values() for good in bundle]
    assert len(given_away) == len(set(given_away))
    assert sale.worth == best_by_trying(bids)
    assert sale.worth == sum(bids[name][bundle] for name, bundle in sale.goods.items())
    for name, price in sale.prices.items():
        assert 0 <= price <= bids[name][sale.goods[name]]


@given(bids, offers)
def test_no_lie_pays(bids: dict[str, Offers], lie: Offers) -> None:
    truth = bids["ann"]
    assert utility("ann", truth, bids | {"ann": lie}) <= utility("ann", truth, bids) + 1e-9


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(1, 9).map(float), min_size=2))
def test_one_good_is_the_second_price_auction(values: dict[str, float]) -> None:
    sale = vcg({name: {b("a"): value} for name, value in values.items()}, NAMES)
    winner, price = sealed(values, NAMES, "second_price", "highest")
    assert (sale.goods, sale.prices) == ({winner: b("a")}, {winner: price})


def saying(words: dict[str, str]) -> ScriptedEngine:
    def answer(messages: tuple[Message, ...], seed: int) -> str:
        return words[messages[-1].content.rpartition("You are ")[2].split(".")[0]]

    return ScriptedEngine(answer)


async def test_a_team_sells_bundles_and_logs_how() -> None:
    team = Team("market", members(*NAMES), protocol(reduce="auction(vcg)"), channels="none")
    words = {
        "ann": 'I offer {"bed+desk": 10}.',
        "bob": 'My bid: {"bed": 7, "lamp": -3, "": 4}',
        "cem": '{"desk": 6, "bed": "much"}',
    }
    with EventLog() as log:
        result = await run(team, "Sell.", engine=saying(words), log=log)
        (note,) = (dict(event.body) for event in log.events("note"))
    assert result.result == "bob gets bed at 4\ncem gets desk at 3"
    assert note == {
        "sold": {"bob": "bed", "cem": "desk"}, "prices": {"bob": 4.0, "cem": 3.0}, "worth": 13.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "bid", ["nothing", "{}", "{" + ", ".join(f'"g{i}": 1' for i in range(13)) + "}"]
)
async def test_without_goods_or_with_too_many_there_is_no_result(bid: str) -> None:
    team = Team("market", members("ann"), protocol(reduce="auction(vcg)"), channels="none")
    result = await run(team, "Sell.", engine=saying({"ann": bid}))
    assert (result.result, result.outcome) == (None, "undecided")


def test_vcg_sells_only() -> None:
    with pytest.raises(ConfigError, match="knows no lowest bid"):
        protocol(reduce="auction(vcg, best=lowest)")
