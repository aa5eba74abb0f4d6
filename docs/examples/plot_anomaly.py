"""
Anomalies have low scores
=========================

A VAE that was trained without 8s gives most 8s a lower score than other digits, and shows which
pixels are the reason.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skvae import VAETransformer, metrics
from skvae.likelihoods import Gaussian

# %%
# Training rows are all normal
# ----------------------------
# The training rows are all digits but 8. The new rows contain 8s, too. Pixels that hardly vary in
# training are left out, since they alone would decide a density.

X, y = load_digits(return_X_y=True)
X_known, X_odd = X[y != 8], X[y == 8]
X_train, X_new = train_test_split(X_known, random_state=0)
X_test = np.concatenate([X_new, X_odd])
is_odd = np.repeat([False, True], [len(X_new), len(X_odd)])
ink = X_train.std(axis=0) > 1

# %%
# Scores
# ------
# ``score_samples`` has the sign of scikit-learn's outlier detectors: odd rows have low scores. The
# area under the ROC curve is the share of pairs of a known digit and an 8 in which the 8 has the
# lower score.

detectors = {
    "VAE": VAETransformer(16, likelihood=Gaussian("shared"), max_iter=40, random_state=0),
    "PCA": PCA(16),
    "IsolationForest": IsolationForest(random_state=0),
}
for name, detector in detectors.items():
    scores = detector.fit(X_train[:, ink]).score_samples(X_test[:, ink])
    print(f"{name:15} area under the ROC curve {roc_auc_score(is_odd, -scores):.2f}")

# %%
# Which pixels
# ------------
# The reconstruction term is a sum over columns, so it shows which columns make a row unlikely. The
# picture has the five oddest 8s, and the nats that each of their pixels costs.

vae = detectors["VAE"]
scores = vae.score_samples(X_test[:, ink])
oddest = np.argsort(np.where(is_odd, scores, np.inf))[:5]
costs = np.full((5, 64), np.nan)
costs[:, ink] = metrics.reconstruction(
    vae, X_test[oddest][:, ink], per_sample=True, per_feature=True, random_state=0
)

figure = plt.figure(figsize=(9, 3.3), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[2, 3])
right.suptitle("the oddest 8s, and what each pixel costs", fontsize="medium")
ax = left.subplots()
bins = np.linspace(*np.quantile(scores, [0, 1]), 40)
for name, own in {"known digits": ~is_odd, "8": is_odd}.items():
    ax.hist(scores[own], bins, density=True, alpha=0.6, label=name)
ax.set(xlabel="score of a new row (nats)", yticks=[])
ax.legend(loc="upper left")
axes = right.subplots(2, 5)
for above, below, row, cost in zip(*axes, X_test[oddest], costs, strict=True):
    above.imshow(row.reshape(8, 8), cmap="gray_r")
    picture = below.imshow(cost.reshape(8, 8), cmap="viridis", vmin=2, vmax=np.nanmax(costs))
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
right.colorbar(picture, ax=axes[1], label="cost (nats)")
plt.show()

# %%
# Scores do not find every odd row. Simple rows can have a high score although no training row was
# like them: with 1 as the unknown digit, PCA and this VAE are much worse.
