"""
Missing values filled in
========================

``VAEImputer`` fills in missing values more exactly than means, neighbours or a regression of every
column on the others. In this table half of the values are missing.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

from skvae import VAEImputer, VAETransformer
from skvae.likelihoods import Gaussian

# %%
# Half of the values are missing
# ------------------------------
# The rows are 569 tumours with 30 numbers each. They are standardised so that errors of all columns
# have one unit. No row is complete.

data = load_breast_cancer()
X = StandardScaler().fit_transform(data.data)
gone = np.random.default_rng(0).random(X.shape) < 0.5
X_holes = np.where(gone, np.nan, X)

# %%
# Four imputers
# -------------
# The model learns from the rows with their missing values, and from four copies of them in which
# further values are hidden. It has one noise variance for each column. With one for each value it
# could explain an error as noise. ``VAEImputer()`` has a default model, which takes longer.

vae = VAETransformer(
    n_components=16,
    likelihood=Gaussian("per_feature"),
    max_iter=100,
    early_stopping=False,
    random_state=0,
)
imputers = {
    "mean": SimpleImputer(),
    "nearest rows": KNNImputer(),
    "regression": IterativeImputer(random_state=0, max_iter=30, tol=0.1),
    "VAE": VAEImputer(vae),
}
filled = {name: imputer.fit_transform(X_holes) for name, imputer in imputers.items()}
errors = {name: np.sqrt(np.mean((X - own)[gone] ** 2)) for name, own in filled.items()}
print("root mean square error of what was missing, in standard deviations of a column")
for name, error in errors.items():
    print(f"{name:12} {error:.2f}")

# %%
# In the picture each point is a missing value of one column. On the line, the filled-in value is
# equal to the true value.

column = list(data.feature_names).index("mean concavity")
holes = gone[:, column]
figure, axes = plt.subplots(1, 4, figsize=(10, 3), sharex=True, sharey=True, layout="constrained")
for ax, (name, own) in zip(axes, filled.items(), strict=True):
    ax.scatter(X[holes, column], own[holes, column], s=8, alpha=0.5)
    ax.axline((0, 0), slope=1, color="black", linewidth=0.8)
    ax.set(title=f"{name}, error {errors[name]:.2f}", aspect="equal")
axes[0].set_ylabel("filled in (standard deviations)")
figure.supxlabel("mean concavity, as it was (standard deviations)", fontsize="medium")
plt.show()

# %%
# A filled-in value is the expected value, so it does not show the uncertainty of the model. For
# several imputations that do, draw them: ``VAEImputer(vae, sample_posterior=True,
# random_state=seed)`` with several seeds.
