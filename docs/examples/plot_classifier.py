"""
Features for a classifier
=========================

If few rows have labels, a classifier may be better with four features that were learned from all
rows than with the forty columns. In this example with counts, the features of a VAE with the right
likelihood are best, and those of PCA are nearly as good. Features of a VAE with the wrong
likelihood are worse than the columns.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skvae import VAETransformer
from skvae.likelihoods import NegativeBinomial, Poisson

# %%
# Counts with few labels
# ----------------------
# Think of cells of five kinds, and of counts of how often each of forty genes was read in a cell.
# Most counts are 0 or 1, and some are large. The total number of reads varies between cells.

rng = np.random.default_rng(0)
y = rng.integers(5, size=1000)
profiles = rng.gamma(0.5, 2, size=40) * np.exp(0.8 * rng.normal(size=(5, 40)))
depth = rng.lognormal(sigma=0.7, size=(1000, 1))
X = rng.negative_binomial(1, 1 / (1 + depth * profiles[y]))
print(f"{np.mean(X == 0):.0%} of the counts are 0, the largest is {X.max()}")

# %%
# Pipelines with different first steps
# ------------------------------------
# A transformer needs no labels, so it is fitted once, to all rows. `FrozenEstimator` keeps the
# Pipeline from fitting it again to the few rows with labels. Fifty rows have a label, and the
# others are for the test. There are twenty such choices.

logarithm = make_pipeline(FunctionTransformer(np.log1p), StandardScaler())
vae = VAETransformer(n_components=4, max_iter=50, random_state=0)
features = {
    "all 40 columns, log(1 + x)": logarithm,
    "PCA of log(1 + x)": make_pipeline(logarithm, PCA(4)),
    "VAE, Poisson": clone(vae).set_params(likelihood=Poisson()),
    "VAE, negative binomial": clone(vae).set_params(likelihood=NegativeBinomial()),
}
splits = StratifiedShuffleSplit(20, train_size=50, random_state=0)
accuracies = {}
for name, transformer in features.items():
    pipeline = make_pipeline(
        FrozenEstimator(transformer.fit(X)), StandardScaler(), LogisticRegression(max_iter=500)
    )
    accuracies[name] = cross_val_score(pipeline, X, y, cv=splits)
    print(f"{accuracies[name].mean():.2f}  {name}")
    if name.startswith("VAE"):
        print(f"      score {transformer.score(X):.1f} nats per row")

# %%
# The likelihood matters more than the use of a network. The variance of these counts is far above
# their mean, which a Poisson distribution does not allow. ``score`` shows the better likelihood of
# counts without any label, since both scores are log-probabilities.

figure, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
for place, own in enumerate(accuracies.values()):
    ax.plot(own, np.full(len(own), place), "|", color="C0", markersize=14, alpha=0.6)
    ax.plot(own.mean(), place, "o", color="black")
ax.set_yticks(range(len(accuracies)), accuracies)
ax.set_ylim(len(accuracies) - 0.5, -0.5)
ax.set(xlabel="accuracy on rows without a label", title="Each choice of 50 labels, and the mean")
plt.show()
