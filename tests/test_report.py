"""How a training run ended, and what is said of it."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from skvae import VAETransformer
from skvae._fit import report
from skvae._fit.job import Trained
from skvae._fit.preparation import prepare
from skvae._model.member import Record


def outcome(record=None, *, shortfall=0.0, n_active=2, n_varying=3, **params):
    """What is said of a run with this record: the messages."""
    params = {"max_iter": 30, "random_state": 0} | params
    X = np.random.default_rng(0).normal(size=(100, 3))
    plan = prepare(VAETransformer(2, **params), X)[0].plan
    trained = Trained(record or Record(n_iter=30, kept=30), {}, n_active, shortfall)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report.check_outcome(trained, plan, n_varying)
    for warning in caught[:1]:
        assert warning.category is (UserWarning if n_active == 0 else ConvergenceWarning)
    return [str(warning.message) for warning in caught]


def test_nothing_is_said_of_a_run_that_ended_well():
    assert outcome() == []
    assert outcome(Record(n_iter=30, kept=0, is_simple=True)) == []
    assert outcome(early_stopping=False) == []


@pytest.mark.parametrize(("n_iter", "said"), [(9, False), (10, True), (30, True)])
def test_the_first_epoch_is_said_to_be_kept_where_many_were_worse(n_iter, said):
    messages = outcome(Record(n_iter=n_iter, kept=1, outcome="converged"))
    assert len(messages) == said
    for message in messages:
        assert message.startswith(f"The weights of epoch 1 of {n_iter} were kept, since all later")
        assert "on the 10 rows that were held out" in message
        for remedy in ("learning_rate", "layers", "more rows", "groups", "early_stopping=False"):
            assert remedy in message


@pytest.mark.parametrize("kept", [0, 2, 30])
def test_nothing_is_said_where_another_epoch_or_factor_analysis_was_kept(kept):
    assert outcome(Record(n_iter=30, kept=kept, is_simple=kept == 0)) == []


@pytest.mark.parametrize(("shortfall", "said"), [(-1.0, False), (0.5, False), (0.6, True)])
def test_a_linear_model_that_misses_its_optimum_by_half_a_nat_is_told_by_how_much(shortfall, said):
    messages = outcome(shortfall=shortfall, early_stopping=False)
    assert len(messages) == said
    for message in messages:
        assert message.startswith("Training ended 0.6 nats a row short of factor analysis")
        assert "factor analysis is kept. Lower learning_rate=0.003" in message


def test_a_model_without_active_components_is_told_what_to_try():
    (message,) = outcome(n_active=0)
    assert message.startswith("All 2 components are inactive")
    (message,) = outcome(Record(n_iter=30, kept=0, is_simple=True), n_active=0)
    assert "The columns have nothing in common" in message


@pytest.mark.parametrize("record", [None, Record(n_iter=30, kept=0, is_simple=True)])
def test_one_column_has_nothing_to_share_and_a_table_of_constants_nothing_to_model(record):
    assert outcome(record, n_active=0, n_varying=1) == []
    (message,) = outcome(record, n_active=0, n_varying=0)
    assert message.startswith("All columns of X are constant in the rows that fit trained on")


@pytest.mark.filterwarnings("error:All")
@pytest.mark.parametrize("early_stopping", [True, False])
def test_a_fit_to_one_column_says_nothing_of_components(early_stopping):
    how = {"hidden_layer_sizes": (4,), "max_iter": 3, "random_state": 0}
    column = np.random.default_rng(0).normal(size=(60, 1))
    frame = pd.DataFrame({"colour": np.array(["red", "green", "blue"])[np.arange(60) % 3]})
    vae = VAETransformer(2, early_stopping=early_stopping, **how)
    for X in (column, np.hstack([column, np.ones((60, 2))]), frame):
        clone(vae).set_params(likelihood="auto", beta=9.0).fit(X)


@pytest.mark.filterwarnings("error:All")
@pytest.mark.parametrize("likelihood", ["gaussian", "auto"])
@pytest.mark.parametrize("early_stopping", [True, False])
def test_a_table_of_equal_rows_is_said_to_be_constant(likelihood, early_stopping):
    X = pd.DataFrame({"a": np.full(60, 3.0), "b": 1.0})
    if likelihood == "auto":
        X["c"] = "red"
    vae = VAETransformer(likelihood=likelihood, early_stopping=early_stopping, max_iter=3)
    with pytest.warns(UserWarning, match="All columns of X are constant") as caught:
        vae.fit(X)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("kept", "words"), [(3, "the weights of epoch 3"), (0, "factor analysis")])
def test_what_is_kept_after_a_loss_that_was_not_finite_is_named(kept, words):
    record = Record(n_iter=6, kept=kept, is_simple=kept == 0, outcome="diverged")
    (message,) = outcome(record)
    assert message.startswith("The loss was not finite in epoch 7, at learning rate")
    assert f"{words} were kept" in message or f"{words} was kept" in message


def test_nothing_is_left_of_a_run_whose_first_epoch_was_not_finite():
    with pytest.raises(ValueError, match="not finite in epoch 1, at learning rate"):
        outcome(Record(outcome="diverged"))
