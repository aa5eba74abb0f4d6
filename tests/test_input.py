"""What `fit` learns of the columns, before a model is made."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from skvae import _arrays, _input
from skvae.likelihoods import Gaussian


class Watched:
    """Rows that note how many of them are asked for at once."""

    def __init__(self, X):
        self.X, self.shape, self.dtype, self.asked = X, X.shape, X.dtype, []

    def __getitem__(self, rows):
        some = self.X[rows]
        self.asked.append(some.shape[0])
        return some


def describe(data, held_out, weight=None):
    names = {"_categories": {}}
    return _input.describe(data, Gaussian(), names, weight, held_out, reset=True)[0]


@pytest.mark.filterwarnings("ignore:X has values that are farther from the others")
@pytest.mark.parametrize("kind", [np.asarray, csr_array], ids=["dense", "sparse"])
def test_rows_are_described_in_blocks_those_held_out_too(kind):
    X = np.random.default_rng(0).normal(size=(3000, 1000))
    held_out = np.random.default_rng(1).permutation(3000)[:1500]
    X[held_out[7], 3] = 1e9
    X[held_out[9], 4] = np.nan
    data = Watched(kind(X))
    moments = describe(data, held_out)
    assert max(data.asked) <= _arrays.READ_AT_ONCE // 1000
    assert moments.has_holes
    assert moments.suspects[1, 3] == 1e9
    training = np.delete(X, held_out, axis=0)
    np.testing.assert_allclose(moments.mean, training.mean(axis=0), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(moments.std, training.std(axis=0), rtol=1e-9)


def test_a_hole_of_a_held_out_row_in_a_column_without_a_value_is_none():
    X = np.random.default_rng(0).normal(size=(30, 3))
    X[:, 1] = np.nan
    with pytest.warns(UserWarning, match="X has no value in column 1"):
        assert not describe(X, np.array([4, 2])).has_holes


@pytest.mark.filterwarnings("ignore:X has values that are farther from the others")
@pytest.mark.parametrize("weighted", [False, True])
def test_a_held_out_value_out_of_reach_is_counted_in_the_units_of_its_column(weighted):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 3))
    X[[5, 80], 1] = 1e20, 1e19
    weight = rng.uniform(0.5, 2, 100) if weighted else None
    whole, training = (describe(X, np.array(out, int), weight) for out in ([], [5, 80]))
    for name in ("mean", "std", "n_values", "n_various"):
        assert getattr(training, name)[1] == getattr(whole, name)[1]
    others = describe(X[:, [0, 2]], np.array([5, 80]), weight)
    np.testing.assert_array_equal(training.std[[0, 2]], others.std)
    assert training.n_values.tolist() == [98, 100, 98]
