"""
A table with categories, whole numbers and missing values
=========================================================

One estimator takes a table with a category, whole numbers and missing values as it is. It returns
tables with filled-in values, or with new rows. The table has the 442 patients of scikit-learn's
diabetes data in their own units, with every tenth value missing.
"""

from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from skvae import VAEGridSearchCV, VAEImputer, VAETransformer
from skvae.likelihoods import Categorical, Columns, Gaussian

# %%
# The table
# ---------
# The table has real and whole numbers and a category. The target is whether the disease progressed
# fast.

data = load_diabetes(as_frame=True, scaled=False)
whole = data.data.assign(sex=data.data["sex"].map({1.0: "f", 2.0: "m"}).astype("category"))
whole["age"] = whole["age"].astype("Int64")
fast = data.target > data.target.median()

gone = np.random.default_rng(0).random(whole.shape) < 0.1
table = whole.mask(gone)
print(table.head().to_string())

# %%
# The search
# ----------
# `likelihood="auto"` would choose the same by the dtypes. The score is a lower bound on the sum of
# the log-density of the numbers and the log-probability of the category, for the observed values.

likelihood = Columns([(Categorical(), ["sex"]), (Gaussian(), table.columns.drop("sex").tolist())])
vae = VAETransformer(likelihood=likelihood, max_iter=60, learning_rate=0.01, random_state=0)
search = VAEGridSearchCV(vae, {"n_components": [1, 2, 4, 8]}, cv=2).fit(table)
results = pd.DataFrame(search.cv_results_)
print(results[["param_n_components", "mean_test_score", "std_test_score"]].round(2))

# %%
# Features for a classifier
# -------------------------
# Rows with missing values have latent features, too.

best = search.best_estimator_
classifier = make_pipeline(best, LogisticRegression())
print(f"accuracy: {cross_val_score(classifier, table, fast, cv=3).mean():.2f} (of a coin: 0.50)")

# %%
# Missing values
# --------------
# The imputer fills in the expected value, given the observed values of the row. For all columns but
# age its error is smaller than that of the column's mean.

filled = VAEImputer(best).fit_transform(table)
numbers = table.columns.drop("sex")
scale = whole[numbers].astype(float).std()
truth, expected = (frame[numbers].astype(float) / scale for frame in (whole, filled))
holes = pd.DataFrame(gone, columns=whole.columns)[numbers]
error = np.sqrt(((truth - expected) ** 2).where(holes).mean())
of_means = np.sqrt(((truth - truth.where(~holes).mean()) ** 2).where(holes).mean())
print(pd.DataFrame({"VAEImputer": error, "means": of_means}).round(2))

# %%
# New rows, and a file
# --------------------
# Samples have the columns, the dtypes and the categories of the table.

joblib.dump(best, "vae_of_a_table.joblib")
people = joblib.load("vae_of_a_table.joblib").sample(len(table), random_state=0)
Path("vae_of_a_table.joblib").unlink()
print(people.head().round(1).to_string())

figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for ax, (title, frame) in zip(axes, {"patients": whole, "draws": people}.items(), strict=False):
    for sex, marker in zip("fm", "ox", strict=True):
        own = frame[frame["sex"] == sex]
        ax.scatter(own["bmi"], own["bp"], s=12, marker=marker, label=sex, alpha=0.6)
    ax.set(title=title, xlabel="body mass index", xlim=(15, 45), ylim=(50, 140))
    ax.legend(title="sex")
axes[0].set_ylabel("blood pressure")
places = np.arange(len(numbers))
axes[2].barh(places + 0.2, of_means, 0.4, label="means")
axes[2].barh(places - 0.2, error, 0.4, label="VAEImputer")
axes[2].set(title="error where values were missing", xlabel="standard deviations of a column")
axes[2].set_yticks(places, numbers)
axes[2].set(xlim=(0, 1.75))
axes[2].legend(loc="lower right", fontsize="small")

plt.show()
