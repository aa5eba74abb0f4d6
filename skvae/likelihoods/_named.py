"""The likelihoods that have names."""

from skvae.likelihoods._base import Likelihood
from skvae.likelihoods._categories import Categorical
from skvae.likelihoods._counts import NegativeBinomial, Poisson
from skvae.likelihoods._reals import Gaussian, Laplace, StudentT
from skvae.likelihoods._unit_interval import Bernoulli, ContinuousBernoulli

LIKELIHOODS: dict[str, Likelihood] = {
    "gaussian": Gaussian(),
    "laplace": Laplace(),
    "student_t": StudentT(),
    "bernoulli": Bernoulli(),
    "continuous_bernoulli": ContinuousBernoulli(),
    "categorical": Categorical(),
    "poisson": Poisson(),
    "negative_binomial": NegativeBinomial(),
}
