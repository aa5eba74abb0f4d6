"""
What beta does
==============

A larger beta brings the latent space closer to the prior, and costs detail. With a beta of 0
samples are bad, and with 10 reconstructions are.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skvae import VAETransformer, metrics
from skvae.inspection import LatentSpaceDisplay, ReconstructionDisplay, SampleDisplay
from skvae.likelihoods import Gaussian

# %%
# Three models that differ only in beta
# -------------------------------------
# beta is the weight of the KL divergence in the loss only: the score of every model has beta = 1.
# The noise variance of the pixels is fixed at 16 squared grey values, so that all three models
# weigh errors in the same way.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=400, random_state=0)

models = {}
print("beta   negative ELBO = reconstruction + KL   (nats per row)")
for beta in (0, 1, 10):
    vae = VAETransformer(2, likelihood=Gaussian(16), beta=beta, max_iter=80, random_state=0)
    models[beta] = vae.fit(X_train)
    parts = [f(vae, X_test, random_state=0) for f in (metrics.reconstruction, metrics.kl)]
    print(f"{beta:4} {sum(parts):15.1f} = {parts[0]:14.1f} + {parts[1]:4.1f}")

# %%
# Latent space, reconstructions, samples
# --------------------------------------
# Each point is the posterior mean of a held-out row, with an ellipse of one posterior standard
# deviation. The dashed circle contains 95 % of the prior.
#
# - With 0 nothing keeps posteriors wide or near the prior. Samples come from the region of the
#   prior, which is a small and crowded part of the region of the posteriors.
# - With 1 the posteriors of all rows together cover the prior, and samples are like rows.
# - With 10 it costs more than it saves to tell rows from each other. Nearly all posteriors are the
#   prior, and all reconstructions and samples are nearly the mean of the rows.

figure, axes = plt.subplots(
    3, 3, figsize=(10, 6.4), height_ratios=[3, 0.8, 1], layout="constrained"
)
for column, (beta, vae) in zip(axes.T, models.items(), strict=True):
    LatentSpaceDisplay.from_estimator(
        vae, X_test, y_test, components=(0, 1), ellipses=True, ax=column[0]
    )
    column[0].add_patch(plt.Circle((0, 0), 2.45, fill=False, linestyle="--"))
    column[0].set_title(f"β = {beta}")
    ReconstructionDisplay.from_estimator(
        vae, X_test, image_shape=(8, 8), n_images=8, cmap="gray_r", ax=column[1]
    )
    SampleDisplay.from_estimator(
        vae, mean=True, random_state=0, image_shape=(8, 8), cmap="gray_r", ax=column[2]
    )
for column in axes.T[1:]:  # the labels on the left are those of all columns
    for ax in column:
        ax.set_ylabel("")
    column[1].set_yticks([])
    column[2].set_yticks([])
for ax in axes[0, :2]:
    ax.get_legend().remove()
plt.show()
