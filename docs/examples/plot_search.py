"""
How many components?
====================

The held-out score shows how many components the rows need, and that more components do little harm.
A grid search over `n_components` and `beta` finds the four factors of these rows.
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
# There are twenty columns. Each is a nonlinear function of the same four numbers, with noise.

rng = np.random.default_rng(0)
factors = rng.normal(size=(800, 4))
X = np.tanh(factors @ rng.normal(size=(4, 20))) + 0.4 * rng.normal(size=(800, 20))

# %%
# The search
# ----------
# `VAEGridSearchCV` is a `GridSearchCV` that trains all candidates and folds together. It chooses by
# the ELBO. The KL divergence and the reconstruction term also show the effect of beta.

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
# With a beta of 1, sixteen components cost only 0.3 nats more than four, since useless components
# collapse. With 0.5 they don't collapse, and learn noise. With 4 even four components tell little.
#
# On the right, each point is a model: the nats that z tells of a row, and the nats that then
# remain. Their sum is the negative ELBO. It is the same everywhere on the dashed line, which goes
# through the best model, and no model is below the line. To the lower right, reconstructions
# improve by less than they cost.

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
SearchDisplay.from_estimator(search, ax=axes[0])
SearchDisplay.from_estimator(search, kind="rate_distortion", ax=axes[1])
plt.show()
