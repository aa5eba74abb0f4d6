"""
A mixture that PCA can't see
============================

A VAE draws all eight clusters of this ring, and its score is about that of the true density. PCA
sees only one round cloud, since mean and covariance contain no information on clusters.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import logsumexp
from sklearn.decomposition import PCA

from skvae import VAETransformer
from skvae.likelihoods import Gaussian
from skvae.priors import Mixture

# %%
# Rows whose density is known
# ---------------------------
# The rows are in eight round clusters of equal weight, so the true density can be scored, too.

rng = np.random.default_rng(0)
turns = 2 * np.pi * np.arange(8) / 8
centres = 3 * np.column_stack([np.cos(turns), np.sin(turns)])


def draw(n):
    return centres[rng.integers(8, size=n)] + 0.3 * rng.normal(size=(n, 2))


def log_density(X):
    square = ((X[:, None] - centres) ** 2).sum(axis=-1) / 0.3**2
    return logsumexp(-square / 2, axis=1) - np.log(8 * 2 * np.pi * 0.3**2)


X_train, X_test = draw(1000), draw(1000)

# %%
# Two models
# ----------
# PCA keeps both components and so all of a row. Its density is a normal distribution. The VAE has
# a mixture of eight normals as prior p(z), and one noise variance.

pca = PCA(2).fit(X_train)
vae = VAETransformer(
    n_components=2,
    prior=Mixture(8),
    likelihood=Gaussian("shared"),
    learning_rate=0.01,
    max_iter=150,
    random_state=0,
).fit(X_train)

print("score on new rows, nats per row")
print(f"PCA {pca.score(X_test):8.2f}")
print(f"VAE {vae.score(X_test):8.2f}, a lower bound")
print(f"truth {log_density(X_test).mean():6.2f}")

# %%
# New rows
# --------
# Draws show in detail what a score shows in one number.

draws = {
    "rows": X_test,
    "draws of PCA": rng.multivariate_normal(pca.mean_, pca.get_covariance(), size=1000),
    "draws of the VAE": vae.sample(1000, random_state=0),
}
figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), sharex=True, sharey=True, layout="constrained")
for ax, (title, rows) in zip(axes, draws.items(), strict=True):
    ax.scatter(*rows.T, s=4, alpha=0.6)
    ax.set(title=title, xlabel="x1", aspect="equal", xlim=(-6, 6), ylim=(-6, 6))
axes[0].set_ylabel("x2")
plt.show()

# %%
# The prior needs the number of clusters, as `GaussianMixture` does. If rows have no other structure
# than clusters, `GaussianMixture` is the better model.
