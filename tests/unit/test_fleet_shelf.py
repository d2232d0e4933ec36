"""Stores of simulated roles on one shelf: what several are given is kept once, and each loses only its own."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from blindsum.fleet.shelf import LARGE_SIZE, WRITTEN_MAX, Place, Shelf, ShelfStore
from blindsum.protocol.machines.step import Write


def test_one_value_for_several_stores_is_written_once_and_stays_until_the_last_lets_go() -> None:
    shelf, value = Shelf(), os.urandom(LARGE_SIZE)
    stores = [ShelfStore(shelf) for _ in range(4)]
    for number, store in enumerate(stores):
        store.commit([Write(f"round/t/header/{number}", value)])
    assert shelf._end == LARGE_SIZE
    for number, store in enumerate(stores):
        assert store.get(f"round/t/header/{number}") == value
        store.commit([Write(f"round/t/header/{number}", None)])
        assert store.get(f"round/t/header/{number}") is None
    other = os.urandom(LARGE_SIZE)
    stores[0].commit([Write("round/t/other", other)])
    assert stores[0].get("round/t/other") == other and shelf._end == LARGE_SIZE


def test_a_value_that_comes_back_after_all_let_go_is_written_anew() -> None:
    shelf, value = Shelf(), os.urandom(LARGE_SIZE)
    first = shelf.keep(value)
    shelf.free(first)
    taken = shelf.keep(os.urandom(LARGE_SIZE))  # where the value was
    again = shelf.keep(value)
    assert isinstance(taken, Place) and isinstance(again, Place) and taken.offset != again.offset
    assert shelf.read(again) == value


def test_values_are_known_again_for_a_while_only() -> None:
    shelf = Shelf()
    values = [os.urandom(LARGE_SIZE) for _ in range(WRITTEN_MAX + 1)]
    places = [shelf.keep(value) for value in values]
    assert shelf.keep(values[-1]) is places[-1]
    assert shelf.keep(values[0]) is not places[0]
    assert len(shelf._written) == WRITTEN_MAX
    assert [shelf.read(place) for place in places] == values


KEYS = [f"{folder}/{name}" for folder in ("state", "round/t/header", "blob/aa", "blob/bb") for name in "012"]


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(KEYS), st.booleans()), max_size=40))
def test_stores_on_one_shelf_hold_what_dictionaries_would(writes: list[tuple[int, str, bool]]) -> None:
    shelf = Shelf()
    stores, expected = [ShelfStore(shelf), ShelfStore(shelf)], [dict[str, bytes](), dict[str, bytes]()]
    for which, key, kept in writes:
        value = key.encode() * 300 if kept else None
        stores[which].commit([Write(key, value)])
        expected[which].pop(key, None)
        if value is not None:
            expected[which][key] = value
    for store, rows in zip(stores, expected, strict=True):
        assert dict(store.scan("")) == rows
        for prefix in ("state/", "blob/aa/", "blob/", "round/"):
            assert list(store.keys(prefix)) == sorted(key for key in rows if key.startswith(prefix))
        assert {key: store.get(key) for key in KEYS} == {key: rows.get(key) for key in KEYS}
