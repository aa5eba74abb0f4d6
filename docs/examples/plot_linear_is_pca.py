"""
The linear VAE is PCA
=====================

Without hidden layers, and with one noise variance for all columns, a VAE finds the subspace of PCA
and has the score of PCA. So hidden layers are useful if they beat the score of PCA.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.linalg import subspace_angles
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.feature_selection import VarianceThreshold
from sklearn.model_selection import train_test_split

from skvae import VAETransformer
from skvae.likelihoods import Gaussian

# %%
# Two models of the same rows
# ---------------------------
# PCA has a log-density, too, that of probabilistic PCA (Tipping & Bishop, 1999) with one noise
# variance for all columns. It computes the optimum from the covariance, and the VAE finds it by
# gradient steps. Pixels that hardly vary are left out.

X, y = load_digits(return_X_y=True)
X = VarianceThreshold(1).fit_transform(X)
X_train, X_test, _, y_test = train_test_split(X, y, random_state=0)

pca = PCA(n_components=2).fit(X_train)
vae = VAETransformer(
    n_components=2,
    hidden_layer_sizes=(),
    likelihood=Gaussian("shared"),
    learning_rate=0.01,
    max_iter=150,
    early_stopping=False,
    random_state=0,
).fit(X_train)

# %%
# The same score
# --------------
# Scores are in nats per row. The score of a VAE is a lower bound on the log-density. For a linear
# model both are equal.

for name, model in {"PCA": pca, "linear VAE": vae}.items():
    print(
        f"{name:10}  score: {model.score(X_train):.2f} on training rows, "
        f"{model.score(X_test):.2f} on new rows; noise variance {model.noise_variance_:.2f}"
    )

# %%
# The same subspace
# -----------------
# Each column of the linear decoder is the change of a row per unit of a latent feature. These
# columns span the same subspace as the axes of PCA.

slopes = vae.inverse_transform(np.eye(2)) - vae.inverse_transform(np.zeros((1, 2)))
angles = np.rad2deg(subspace_angles(pca.components_.T, slopes.T))
print(f"largest angle between the two subspaces: {angles.max():.1f} degrees")

# %%
# The same axes
# -------------
# Even the axes are nearly those of PCA, since the posterior has independent components. Their order
# and signs are random. Their scale is that of the prior, a variance of about 1.

Z_pca, Z_vae = pca.transform(X_test), vae.transform(X_test)
correlation = np.corrcoef(Z_pca.T, Z_vae.T)[:2, 2:]
print("correlation of PCA's components (rows) and the VAE's (columns)")
print(correlation.round(3))

# %%
# In the picture, the latent features of the VAE have the order and signs of PCA. On the right, each
# point is a row, and both scores are equal on the line.

order = abs(correlation).argmax(axis=1)
Z_vae = Z_vae[:, order] * np.sign(correlation[[0, 1], order])

figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
for ax, (title, Z) in zip(axes, {"PCA": Z_pca, "linear VAE": Z_vae}.items(), strict=False):
    for digit in range(10):
        ax.scatter(*Z[y_test == digit].T, marker=f"${digit}$", s=25, color=f"C{digit}", lw=0.3)
    ax.set(title=title, xlabel="component 1", ylabel="component 2")
scores = pca.score_samples(X_test), vae.score_samples(X_test)
axes[2].scatter(*scores, s=8, alpha=0.5)
axes[2].axline(scores[0][:1].repeat(2), slope=1, color="black", lw=0.8)
axes[2].set(title="score of each new row", xlabel="PCA (nats)", ylabel="linear VAE (nats)")
plt.show()
