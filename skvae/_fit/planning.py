"""Plan a training run: resolve "auto", hold rows out, and find the earlier run to continue."""

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from skvae._backend import files
from skvae._backend.tensors import Array
from skvae._backend.warn import warn
from skvae._data import arrays
from skvae._fit.job import Job
from skvae._model import evidence, loop
from skvae._model.member import Plan
from skvae._model.state import log_jacobian

# With early_stopping="auto" and fewer rows than this, all rows are trained on. Then factor analysis
# of them is kept, if the model can become that.
EARLY_STOPPING_ROWS = 20
# Rows, evenly spread, by which a fit recognises the data that it was stopped on.
FINGERPRINT_ROWS = 1000


def plan_training(vae: Any, job: Job, continues: bool, partial: bool) -> Job:
    """Return the job with its plan, and with the progress that it continues, if any.

    It continues an earlier run like it that was stopped, or the last partial fit.
    """
    earlier = vae._progress if continues else None
    if partial:
        goes_on = earlier is not None and earlier["run"] == describe_run(job, partial)
        plan = _plan(vae, job, continues)
        plan = replace(plan, max_iter=1, schedule="constant", n_warmup=0, n_errors=None)
        return job._replace(plan=plan, progress=earlier if goes_on else None)
    if earlier is not None and not earlier["run"]["partial"]:
        run = earlier["run"]
        same = job
        if run["seed"] != job.seed:
            shape = job.data.shape[0], job.architecture.n_features
            held_out = hold_out(vae, shape, job.n_at_once, run["seed"], job.group)
            same = job._replace(seed=run["seed"], held_out=held_out)
        same = same._replace(plan=_plan(vae, same, run["continues"]))
        now = describe_run(same, partial)
        if now == run:
            return same._replace(progress=earlier)
        changed = ", ".join(name for name in now if now[name] != run.get(name))
        warn(
            f"The fit that was stopped after {earlier['n_iter']} of {run['max_iter']} epochs "
            f"does not go on, since something is not what it was: {changed}. This one begins "
            "anew from its weights."
        )
    return job._replace(plan=_plan(vae, job, continues))


def hold_out(
    vae: Any, shape: tuple[int, int], n_at_once: int, seed: int, group: Array | None = None
) -> Array:
    """Return the indices of the held-out rows, in random order; empty without early stopping.

    `shape` is that of the data, (n_rows, n_features), and `n_at_once` is how many rows may be in
    memory. Rows of one `group` are held out together.
    """
    n_rows, early = shape[0], vae.early_stopping
    if early == "auto":
        early = n_rows >= EARLY_STOPPING_ROWS
    if not early:
        return np.empty(0, np.intp)
    n_held_out = min(int(vae.validation_fraction * n_rows), n_rows - 1)
    if n_held_out < 1:
        raise ValueError(
            f"The validation set is too small: {vae.validation_fraction} of {n_rows} rows. "
            "Increase 'validation_fraction', or set early_stopping=False."
        )
    rng = np.random.default_rng(seed)
    if group is not None:
        chosen = np.isin(group, _choose_groups(np.bincount(group), n_held_out, rng))
        return rng.permutation(np.flatnonzero(chosen))
    if n_at_once < n_rows:  # one row of each stretch, since rows are read in their order
        n_held_out = min(n_held_out, _n_judged(vae, shape, n_at_once))
        stretches = np.arange(n_held_out + 1) * n_rows // n_held_out
        return rng.permutation(rng.integers(stretches[:-1], stretches[1:]))
    return rng.permutation(n_rows)[:n_held_out]


def _choose_groups(sizes: Array, n_held_out: int, rng: np.random.Generator) -> list[int]:
    """Choose groups with `n_held_out` rows or more together; of 9 groups or more, at least 3.

    A group is passed over if the chosen ones would then have more than half of all rows.
    """
    chosen: list[int] = []
    n, least = 0, min(3, len(sizes) // 3)
    for number in rng.permutation(len(sizes)):
        if n >= n_held_out and len(chosen) >= least:
            break
        if n + sizes[number] <= sizes.sum() / 2:
            chosen.append(number)
            n += sizes[number]
    return chosen


def _n_judged(vae: Any, shape: tuple[int, int], n_at_once: int) -> int:
    """Return how many held-out rows have room in memory, with the noise of their draws."""
    n_rows, n_features = shape
    if n_at_once >= n_rows:
        return n_rows
    n_draws = max(loop.N_VALIDATION_DRAWS, vae.n_importance_samples)
    return max(1, n_at_once * n_features // (n_features + 2 * n_draws * vae.n_components))


def _plan(vae: Any, job: Job, continues: bool) -> Plan:
    """Return the numbers of the training run, with "auto" resolved."""
    architecture, n_rows = job.architecture, job.data.shape[0]
    n_judged = _n_judged(vae, (n_rows, architecture.n_features), job.n_at_once)
    n_held_out = min(len(job.held_out), n_judged)
    n_training = n_rows - len(job.held_out)
    batch_size = vae.batch_size
    if batch_size == "auto":
        # About 16 steps an epoch, in batches of 32 to 256 rows.
        batch_size = 2 ** math.floor(math.log2(max(32, min(256, n_training / 16))))
    share_held_back = 0.0 if continues else architecture.likelihood.share_held_back
    return Plan(
        n_components=vae.n_components,
        n_held_out=n_held_out,
        batch_size=min(batch_size, n_training),
        max_iter=vae.max_iter,
        learning_rate=vae.learning_rate,
        schedule=vae.learning_rate_schedule,
        weight_decay=vae.weight_decay,
        max_grad_norm=math.inf if vae.max_grad_norm is None else vae.max_grad_norm,
        beta=vae.beta,
        n_warmup=int(vae.beta_warmup * (vae.max_iter // vae.n_beta_cycles)),
        n_cycles=vae.n_beta_cycles,
        n_importance_samples=vae.n_importance_samples,
        free_bits=float(vae.free_bits),
        n_noise=architecture.n_noise,
        patience=vae.n_iter_no_change,
        n_held_back=math.ceil(share_held_back * vae.max_iter),
        n_errors=_needed_errors(vae, job, n_held_out),
        tol=vae.tol,
        constant=log_jacobian(job.state),
        continues=continues,
    )


def _needed_errors(vae: Any, job: Job, n_held_out: int) -> float | None:
    """Standard errors by which an epoch must beat factor analysis on the held-out rows.

    It is infinite if no rows are held out, and None if early stopping is off.
    """
    if not vae.early_stopping:
        return None
    judged = job.held_out[:n_held_out]
    weight = np.ones(len(judged)) if job.sample_weight is None else job.sample_weight[judged]
    group = None if job.group is None else job.group[judged]
    return evidence.needed_errors(weight, group)


def describe_run(job: Job, partial: bool) -> dict[str, Any]:
    """Return the values by which a run is recognised; a partial fit may continue on any rows."""
    device = {"partial": partial, "device": job.device.type}
    if partial:
        return device
    n_rows = job.data.shape[0]
    index = np.linspace(0, n_rows - 1, min(n_rows, FINGERPRINT_ROWS)).astype(int)
    some = np.asarray(arrays.dense(job.data[index]))
    return {
        **device,
        "rows": files.checksum([n_rows, some, job.sample_weight, job.group]),
        "working_memory": job.n_at_once,
        "precision": job.precision,
        "seed": job.seed,
        **asdict(job.plan),
    }
