"""Likelihoods p(x|z): the distribution of a row, given by the decoder's outputs.

A likelihood is a value with pure functions of tensors. x is in the model's own units
(`skvae._data.units`), `raw` are the decoder's outputs, and `log_prob` gives log-densities per
feature in nats, including all constants. The model sums them over the features and adds the
log-Jacobian of its units.

`vjp` is the derivative of the log-density, written out for M models at once as in
`skvae.networks`. Likelihoods that do not write it out get it from autograd.
"""

from skvae.likelihoods._base import Likelihood
from skvae.likelihoods._categories import Categorical
from skvae.likelihoods._columns import Columns
from skvae.likelihoods._counts import NegativeBinomial, Poisson, ZeroInflated
from skvae.likelihoods._levels import DiscretizedLogistic
from skvae.likelihoods._named import LIKELIHOODS as LIKELIHOODS
from skvae.likelihoods._reals import Gaussian, Laplace, StudentT
from skvae.likelihoods._unit_interval import Bernoulli, ContinuousBernoulli

__all__ = [
    "Bernoulli",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "ZeroInflated",
]
