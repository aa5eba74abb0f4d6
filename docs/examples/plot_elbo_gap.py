"""
The gap between the ELBO and the log-likelihood
===============================================

A model with the lower score may have the higher log-likelihood. The score of a VAE is a lower
bound, and its distance from the log-likelihood depends on the training. This example measures it.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.feature_selection import VarianceThreshold
from sklearn.model_selection import train_test_split

from skvae import VAETransformer, metrics

# %%
# The rows are pixels of digits, with noise as wide as a grey step, so that their density is finite.

X = VarianceThreshold(1).fit_transform(load_digits().data)
X = X + np.random.default_rng(0).uniform(-0.5, 0.5, size=X.shape)
X_train, X_test = train_test_split(X, test_size=300, random_state=0)

# %%
# Two models of one architecture
# --------------------------------
# With ``n_importance_samples=K``, training maximises a bound that uses K draws of z,
#
# .. math:: \mathrm{E} \log \frac{1}{K} \sum_{k=1}^K \frac{p(x|z_k)\, p(z_k)}{q(z_k|x)},
#
# which is the ELBO for K = 1 and comes closer to log p(x) as K grows (Burda, Grosse &
# Salakhutdinov, 2016). ``metrics.log_likelihood`` estimates log p(x) by the same formula with many
# draws. ``metrics.elbo`` estimates the score with independent draws for each row.

numbers_of_draws = [1, 3, 10, 30, 100, 300]
estimates = {}  # of log p(x): (numbers of draws, rows)
print("trained with K   ELBO   log-likelihood   gap   (nats per row)")
for K in (1, 10):
    vae = VAETransformer(max_iter=40, n_importance_samples=K, random_state=0).fit(X_train)
    estimates[K] = np.array(
        [
            metrics.log_likelihood(vae, X_test, n_samples=n, random_state=0, per_sample=True)
            for n in numbers_of_draws
        ]
    )
    elbo, log_likelihood = metrics.elbo(vae, X_test, random_state=0), estimates[K][-1].mean()
    print(f"{K:14d} {elbo:6.1f} {log_likelihood:16.1f} {log_likelihood - elbo:5.1f}")

# %%
# Is the difference more than chance? Some rows are easy for both models, so compare row by row.

difference = estimates[10][-1] - estimates[1][-1]
error = difference.std(ddof=1) / np.sqrt(len(difference))
print(f"K = 10 has {difference.mean():.1f} ± {error:.1f} nats per row more than K = 1")

# %%
# The estimates rise with the number of draws to log p(x), from below. The left end shows the
# ELBOs, where K = 1 is better. The right end shows the log-likelihoods, where K = 1 is worse.

figure, ax = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
for (K, of_rows), marker in zip(estimates.items(), "os", strict=True):
    ax.plot(numbers_of_draws, of_rows.mean(axis=1), marker=marker, label=f"K = {K}")
ax.set_xscale("log")
ax.set_xticks(numbers_of_draws, numbers_of_draws)
ax.set(xlabel="draws of z for each row", ylabel="log-likelihood of new rows (nats per row)")
ax.minorticks_off()
ax.legend(title="trained with")
plt.show()
