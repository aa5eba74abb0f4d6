"""Report on a fit: a line per epoch, its history, and warnings on how it ended."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from skvae._backend.tensors import Array
from skvae._backend.warn import warn
from skvae._fit.job import SHORTFALL, Trained
from skvae._model.member import Plan, Record
from skvae._model.state import ACTIVE_VARIANCE

# Least number of epochs for the warning that the first one was the best.
EPOCHS = 10


def print_epoch(record: Record) -> None:
    """Print a line on the latest epoch."""
    latest = {name: values[-1] for name, values in record.history.items()}
    line = f"Iteration {record.n_iter}, loss = {latest['loss']:.8f}"
    if "validation_loss" in latest:
        line += f", validation loss = {latest['validation_loss']:.8f}"
    print(line)


def join(
    before: Mapping[str, Array], n_before: int, now: Mapping[str, Any], n_now: int
) -> dict[str, Array]:
    """Join two histories; NaN where one of them has no such number."""
    missing = np.full(n_before, np.nan), np.full(n_now, np.nan)
    return {
        name: np.concatenate([before.get(name, missing[0]), now.get(name, missing[1])])
        for name in {**before, **now}
    }


def check_outcome(trained: Trained, plan: Plan, n_varying: int, *, keep: bool = True) -> None:
    """Warn if training ended badly or the model is poor; raise if there are no weights to keep.

    `n_varying` is the number of columns that vary in the rows that were trained on.
    """
    _check_end(trained.record, plan, keep)
    _check_model(trained, plan, n_varying)


def _check_end(record: Record, plan: Plan, keep: bool) -> None:
    """Warn if training did not come to its end; raise if no weights are kept."""
    epoch = record.n_iter + 1
    kept = "factor analysis was" if record.is_simple else f"the weights of epoch {record.kept} were"
    if record.outcome == "diverged":
        rate = plan.rate_at(epoch - 1)
        where = f"The loss was not finite in epoch {epoch}, at learning rate {rate:.3g}"
        remedy = "Use a smaller learning_rate, or look for extreme values in X."
        if not keep or (record.kept == 0 and not record.is_simple):
            raise ValueError(f"{where}. {remedy}")
        warn(f"{where}: {kept} kept. {remedy}", ConvergenceWarning)
    elif record.interrupted:
        warn(f"Training interrupted: {kept} kept.")
    elif record.outcome == "finished" and plan.n_held_out and plan.schedule == "constant":
        # A rate that falls to 0 ends training by itself.
        warn(
            f"Maximum number of epochs ({plan.max_iter}) reached before the validation loss "
            f"stopped falling by tol={plan.tol}. Increase max_iter.",
            ConvergenceWarning,
        )


def _check_model(trained: Trained, plan: Plan, n_varying: int) -> None:
    """Warn if the model is worse than it could be, or ignores z."""
    record = trained.record
    if trained.shortfall > SHORTFALL:
        warn(
            f"Training ended {trained.shortfall:.2g} nats a row short of factor analysis, which is "
            "the best that a model without hidden layers can be on its training rows. Training "
            "began there and moved away, so factor analysis is kept. Lower "
            f"learning_rate={plan.learning_rate:.3g}, or look for rows far from all others.",
            ConvergenceWarning,
        )
    if record.kept == 1 and record.n_iter >= EPOCHS and plan.n_held_out and not plan.continues:
        warn(
            f"The weights of epoch 1 of {record.n_iter} were kept, since all later ones were worse "
            f"on the {plan.n_held_out} rows that were held out: the model has hardly learned. It "
            "may learn rows by heart, or the rows held out are unlike the others. Use a smaller "
            "learning_rate, fewer or smaller hidden layers or more rows; rows that belong together "
            "need groups; or set early_stopping=False.",
            ConvergenceWarning,
        )
    if n_varying == 0:
        warn(
            "All columns of X are constant in the rows that fit trained on, so that there is "
            "nothing to model: latent features say nothing of a row. Fit on rows that differ."
        )
    elif trained.n_active > 0 or n_varying == 1:  # one column has nothing to share with another
        return
    elif record.is_simple:
        judged = ", and no epoch was better" if plan.n_held_out else ""
        warn(
            f"All {plan.n_components} components are inactive: columns that are independent of "
            f"each other make rows left out as likely as any linear model{judged}. The columns "
            "have nothing in common, or the rows are too few to show it."
        )
    else:
        warn(
            f"All {plan.n_components} components are inactive: no posterior mean has a variance "
            f"above {ACTIVE_VARIANCE} over the rows, so the model ignores z. Use a smaller "
            "beta, beta_warmup or free_bits above 0, or train for longer; or the columns of X "
            "have nothing in common."
        )
