"""
How many components?
====================

The held-out score tells how many components the rows need, and that more of them do little harm: a
grid search over `n_components` and `beta` finds the four that these rows were made of.
"""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np

from skvae import VAEGridSearchCV, VAETransformer, metrics
from skvae.inspection import SearchDisplay
from skvae.likelihoods import Gaussian

# %%
# Rows of four factors
# --------------------
# Twenty columns, each a bent mixture of the same four numbers, with noise.

rng = np.random.default_rng(0)
factors = rng.normal(size=(800, 4))
X = np.tanh(factors @ rng.normal(size=(4, 20))) + 0.4 * rng.normal(size=(800, 20))

# %%
# The search
# ----------
# `VAEGridSearchCV` is `GridSearchCV`, but trains all candidates and folds together. It chooses by
# the ELBO; with the KL divergence and the reconstruction beside it one sees what beta buys.

scoring = {
    name: partial(getattr(metrics, name), n_samples=4, random_state=0)
    for name in ("elbo", "kl", "reconstruction")
}
vae = VAETransformer(
    likelihood=Gaussian("per_feature"),
    hidden_layer_sizes=(64,),
    learning_rate=0.01,
    max_iter=40,
    random_state=0,
)
grid = {"beta": [0.5, 1, 4], "n_components": [1, 2, 4, 8, 16]}
search = VAEGridSearchCV(vae, grid, cv=3, scoring=scoring, refit="elbo").fit(X)

print(f"best: {search.best_params_}, held-out negative ELBO {-search.best_score_:.2f} nats per row")
results = search.cv_results_
for params, elbo in zip(results["params"], results["mean_test_elbo"], strict=True):
    if params["beta"] == 1:
        print(f"n_components = {params['n_components']:2d}: {-elbo:.2f}")

# %%
# With a beta of 1, sixteen components cost 0.3 nats more than four, since those that are of
# no use collapse. With 0.5 they don't, and learn noise. With 4 even four say little.
#
# On the right, each point is a model: how many nats z tells of a row, and how many are then
# missing. The sum of both is the negative ELBO, and the dashed line is that of the best model: none
# is below it. To the lower right reconstructions get better by less than they cost.

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
SearchDisplay.from_estimator(search, ax=axes[0])
SearchDisplay.from_estimator(search, kind="rate_distortion", ax=axes[1])
plt.show()
