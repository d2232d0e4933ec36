"""Sizes that depend on the batch, against numbers for every batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from blindsum.training.autodiff import sizes
from blindsum.training.autodiff.sizes import Rows

BATCHES = (1, 2, 3, 7)
SIZES = st.one_of(st.integers(0, 12), st.builds(Rows, st.integers(1, 6)))


def _at(size, batch):
    return size.factor * batch if isinstance(size, Rows) else size


@given(SIZES, SIZES)
def test_arithmetic_holds_for_every_batch_or_is_not_done(a, b):
    operations = {
        sizes.times: lambda x, y: x * y,
        sizes.plus: lambda x, y: x + y,
        sizes.minus: lambda x, y: x - y,
        sizes.larger: max,
        sizes.smaller: min,
        sizes.same: lambda x, y: x == y,
    }
    for ours, plain in operations.items():
        found = ours(a, b)
        if found is not None:
            assert all(_at(found, batch) == plain(_at(a, batch), _at(b, batch)) for batch in BATCHES), ours
    quotient = sizes.over(a, b)
    if quotient is not None:
        assert all(_at(quotient, batch) == _at(a, batch) // _at(b, batch) for batch in BATCHES)


@given(SIZES)
def test_dimension_names_its_size(size):
    assert sizes.of(sizes.dimension(size)) == size


@pytest.mark.parametrize("symbol", ["N", "batch+1", "0*batch", "-2*batch", "batch*2", None])
def test_other_symbols_are_unknown(symbol):
    assert sizes.of(symbol) is None


@given(data=st.data())
def test_constant_target_reshapes_every_batch_as_the_computed_one(data):
    """`wanted` is what the graph would compute: sizes, some of them multiples of the batch."""
    rest = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), max_size=3))
    shape = [Rows(data.draw(st.sampled_from([1, 1, 2, 6]))), *rest]
    total = sizes.product(shape)
    wanted = list(data.draw(st.permutations(data.draw(st.sampled_from(_factorisations(total.factor))))))
    at = data.draw(st.integers(0, len(wanted) - 1))
    wanted[at] = Rows(wanted[at])
    target = sizes.reshaped(shape, wanted, batch=0)
    assert target is not None
    for batch in BATCHES:
        values = np.arange(_at(total, batch)).reshape([_at(size, batch) for size in shape])
        copied = [values.shape[place] if size == 0 else size for place, size in enumerate(target)]
        assert values.reshape(copied).shape == tuple(_at(size, batch) for size in wanted)


@given(data=st.data(), batch=st.sampled_from([1, 2, 5]))
def test_target_of_a_model_made_for_one_batch_serves_every_other(data, batch):
    rest = data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3))
    shape = [Rows(1), *rest]
    wanted = [batch, *data.draw(st.sampled_from(_factorisations(int(np.prod(rest)))))]
    hidden = data.draw(st.integers(-1, len(wanted) - 1))
    if hidden >= 0:
        assume(hidden > 0)
        wanted[hidden] = -1
    target = sizes.reshaped(shape, wanted, batch)
    assert target is not None
    for other in BATCHES:
        values = np.zeros([other, *rest])
        copied = [values.shape[place] if size == 0 else size for place, size in enumerate(target)]
        assert values.reshape(copied).shape[0] == other


def _factorisations(number):
    """Shapes of that many elements."""
    found = [[number]]
    found += [[a, number // a] for a in range(1, number + 1) if number % a == 0]
    found += [[a, 1, number // a] for a in (1, 2) if number % a == 0]
    return found
