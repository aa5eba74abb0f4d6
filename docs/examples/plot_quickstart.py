"""
Quickstart: tune, judge, save and look at a VAE
===============================================

A VAE from a short grid search gives new digits a higher density than `PCA` or `FactorAnalysis` of
the same size do. The digits are those of scikit-learn, with 8 x 8 pixels and grey values from 0 to
16. The search chooses the model with the smallest negative evidence lower bound (ELBO) on held-out
rows.
"""

import contextlib
import sys
import time
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.feature_selection import VarianceThreshold
from sklearn.manifold import TSNE
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline

import skvae
from skvae import VAEGridSearchCV, VAETransformer, metrics

# %%
# The data
# --------
# Grey values are whole numbers, and a density can grow without limit on whole numbers, since it
# can have spikes there. Noise as wide as a grey step removes the spikes. Models can then be
# compared by their log-density of these pixels.

X, y = load_digits(return_X_y=True)
X = X + np.random.default_rng(0).uniform(-0.5, 0.5, size=X.shape)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=300, random_state=0)

# %%
# The search
# ----------
# The first step of the pipeline leaves out the pixels at the border that have no ink. There is no
# StandardScaler: the model standardises its columns by itself, so its score is in the units of
# the pixels.
#
# The score of the estimator is the mean ELBO of the rows, always with beta = 1. It is minus the
# negative ELBO. So the search prefers the smallest negative ELBO, and candidates with different
# beta compare fairly. `VAEGridSearchCV` is a `GridSearchCV` that trains all candidates and folds
# together.

vae = VAETransformer(max_iter=40, learning_rate=0.005, device="cpu", random_state=0)
search = VAEGridSearchCV(
    Pipeline([("ink", VarianceThreshold(0.5)), ("vae", vae)]),
    {"vae__beta": [0.5, 1, 4], "vae__n_components": [2, 16]},
    cv=KFold(2, shuffle=True, random_state=0),
)
if sys.stdout.isatty():  # a progress bar, which needs scikit-learn 1.9 and rich
    with contextlib.suppress(ImportError):
        from sklearn.callback import ProgressBar

        search.set_callbacks(ProgressBar(max_propagation_depth=0))

start = time.perf_counter()
search.fit(X_train)
n_fits = len(search.cv_results_["params"]) * search.n_splits_ + 1
print(f"{n_fits} models fitted in {time.perf_counter() - start:.0f} s\n")

# %%
# The table has the candidates, the best first. The spread is the standard deviation over the folds.

results = search.cv_results_
print("beta  n_components  negative ELBO (nats per row)  spread")
for i in np.argsort(results["rank_test_score"], kind="stable"):
    params = results["params"][i]
    print(
        f"{params['vae__beta']:4.1f}  {params['vae__n_components']:12d}"
        f"  {-results['mean_test_score'][i]:28.1f}  {results['std_test_score'][i]:6.1f}"
    )

# %%
# Is that good? A negative ELBO is at least the negative log-density, so it compares with the
# negative log-densities of other models on the same rows. No model was trained on these rows.

best = search.best_estimator_
n_components = best["vae"].n_components
print(f"\nOn {len(X_test)} rows kept aside, nats per row")
print(f"{-best.score(X_test):8.1f}  negative ELBO of the best candidate")
log_density = metrics.log_likelihood(best, X_test, random_state=0)
print(f"{-log_density:8.1f}  its negative log-density, by 100 draws of z for each row")
for peer in (
    GaussianMixture(10, reg_covar=0.1, random_state=0),
    FactorAnalysis(n_components),
    PCA(n_components),
):
    peer_score = make_pipeline(VarianceThreshold(0.5), peer).fit(X_train).score(X_test)
    print(f"{-peer_score:8.1f}  negative log-density of {peer}")

# %%
# To a file and back
# ------------------
# The fitted state is numpy arrays, so a file from a machine with a GPU loads anywhere. On the CPU,
# the loaded model gives the same numbers bit for bit.

model_file = Path("quickstart.joblib")
joblib.dump(best, model_file)
loaded = joblib.load(model_file)
for before, after in (
    (best.transform(X_test), loaded.transform(X_test)),
    (best.score_samples(X_test), loaded.score_samples(X_test)),
    (skvae.sample(best, 40, random_state=0), skvae.sample(loaded, 40, random_state=0)),
):
    np.testing.assert_array_equal(before, after)
print(f"\nSaved, loaded and found equal bit for bit: {model_file}")

# %%
# The picture
# -----------
# All rows in the picture were kept aside. Samples are true draws, with the observation noise that
# the model has learned.

Z = loaded.transform(X_test)
in_the_plane = Z if n_components == 2 else TSNE(random_state=0).fit_transform(Z)
rows = np.concatenate([np.flatnonzero(y_test == digit)[:2] for digit in range(10)])
rows = rows.reshape(10, 2).T.ravel()  # each digit above itself
panels = {
    "Rows kept aside": X_test[rows],
    "Their reconstructions": loaded.inverse_transform(Z[rows]),
    "Samples": skvae.sample(loaded, 40, random_state=0),
}

figure = plt.figure(figsize=(11, 5.5), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 1])
heights = [len(images) // 10 for images in panels.values()]
axes = left.subplots(len(panels), height_ratios=heights)
for ax, (title, images) in zip(axes, panels.items(), strict=True):
    framed = np.pad(images.reshape(-1, 10, 8, 8), [(0, 0), (0, 0), (1, 1), (1, 1)])
    ax.imshow(np.block([list(row) for row in framed]), cmap="gray_r", vmin=0, vmax=16)
    ax.set_title(title, loc="left")
    ax.set_axis_off()

ax = right.subplots()
for digit in range(10):
    points = in_the_plane[y_test == digit]
    ax.scatter(*points.T, marker=f"${digit}$", s=40, color=f"C{digit}", linewidth=0.3)
if n_components == 2:
    ax.set(title="Posterior means", xlabel="z1", ylabel="z2")
else:
    ax.set(title=f"{n_components} posterior means of the rows kept aside, by t-SNE")
    ax.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])

picture_file = Path("quickstart.png")
figure.savefig(picture_file, dpi=100)
print(f"Picture: {picture_file}")
