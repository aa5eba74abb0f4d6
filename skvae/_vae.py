"""The scikit-learn face of the model: `VAETransformer`.

Everything a fitted estimator keeps is numpy arrays and plain Python values. The torch model
is made from them for each call and forgotten, so files hold no device, copies are safe and
threads share nothing.
"""

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import qmc
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import check_array, check_random_state, check_scalar
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skvae._backend import blocks, devices, files
from skvae._backend.tensors import to_array, to_tensor
from skvae._callbacks import Callbacks, CallbackSupportMixin
from skvae._data import (
    containers,
    schema,
    weighting,
)
from skvae._data.units import FARTHEST
from skvae._fit import execution, report
from skvae._fit.preparation import n_varying, prepare
from skvae._inference.fitted import FittedModel
from skvae._model import objective
from skvae._model.architecture import part_of
from skvae._model.member import SCHEDULES
from skvae._typing import Groups, RandomState, Rows, fit_context
from skvae.likelihoods import LIKELIHOODS, Likelihood
from skvae.networks import ACTIVATIONS, NETWORKS, Network
from skvae.posteriors import POSTERIORS, Posterior
from skvae.priors import PRIORS, Prior

MakeModule: TypeAlias = Callable[[int, int], nn.Module]  # (n_in, n_out) to a module

# What scikit-learn's HTML needs to link an estimator: its package, and the page in the docs.
DOC_LINK = "skvae", "https://skvae.github.io/skvae/api/{estimator_module}.{estimator_name}.html"

# What a saved model is checked by, besides its parameters.
FITTED = (
    "state_",
    "history_",
    "n_iter_",
    "kept_iter_",
    "n_features_in_",
    "feature_names_in_",
    "_architecture",
    "_categories",
    "_first_seen",
    "_has_seen_holes",
    "_likelihood",
    "_output",
    "_progress",
    "_seen",
)


class VAETransformer(
    ClassNamePrefixFeaturesOutMixin, CallbackSupportMixin, TransformerMixin, BaseEstimator
):
    """Variational autoencoder: nonlinear PCA with a probability for every row.

    Fits p(x) = ∫ p(x|z) p(z) dz with a standard normal prior p(z) and a decoder network in
    p(x|z), together with an encoder network q(z|x), by maximising the evidence lower bound
    (ELBO) [1]_ with Adam.

    The score is the ELBO in nats per row, in the units of X, always with beta=1: minus the
    negative ELBO, since scikit-learn maximises scores. A grid search over `beta` and
    `n_components` so picks the smallest held-out negative ELBO.

    X needs no scaling before: the model standardises its inputs and accounts for it in the
    density. X may have missing values, and be a table with columns of several kinds.

    Parameters
    ----------
    n_components : int, default=8
        Number of latent features.

    likelihood : str or value, default="gaussian"
        What the rows are, given z, of `skvae.likelihoods`: "gaussian" is `Gaussian()`, real
        values with a noise variance of each row and column; "laplace" and "student_t" the same
        for columns with outliers; "bernoulli" is `Bernoulli()`, yes or no; "continuous_bernoulli"
        numbers in [0, 1]; "categorical" categories; "poisson" and "negative_binomial" counts.
        `ZeroInflated` is for counts with many zeros, `DiscretizedLogistic` for levels of grey.
        `Columns` has one for each part of a table. "auto" makes such parts by dtypes: real and
        whole numbers are "gaussian", bools "bernoulli", strings, objects and categories
        "categorical". One of your own inherits from `Likelihood`.

    prior : {"standard_normal"} or value, default="standard_normal"
        What z is before a row is seen, of `skvae.priors`: "standard_normal" is N(0, I);
        `Mixture` and `Vamp` learn more.

    posterior : {"diagonal", "full"} or value, default="diagonal"
        What z is for a row, of `skvae.posteriors`: "diagonal" has independent normal
        components, "full" any covariance; `Flow` is not normal.

    network : {"mlp"}, value or pair of callables, default="mlp"
        Encoder and decoder, of `skvae.networks`: "mlp" is `MLP()`, `Conv` is for images. Of a
        pair of callables ``(n_in, n_out) -> torch.nn.Module`` the first makes the encoder and
        the second the decoder, from (n, n_in) to (n, n_out). Where values are missing, and in
        `partial_fit`, the encoder also sees which are there, in as many inputs. Their outputs
        for a row must not depend on other rows, nor on chance. A search trains together what is
        equal, as functions of a module are and two lambdas are not.

    hidden_layer_sizes : int or tuple of int, default=(128, 64)
        Widths of the encoder's hidden layers; the decoder has them in reverse order. With
        ``()`` encoder and decoder are linear, and the model is probabilistic PCA [2]_
        (``Gaussian("shared")``) or factor analysis (``Gaussian("per_feature")``).

    activation : {"elu", "gelu", "relu", "silu", "softplus", "tanh"}, default="tanh"
        Activation of the hidden layers.

    beta : float, default=1.0
        Weight of the KL divergence in the training loss [3]_, at least 0. The score
        doesn't use it.

    beta_warmup : float, default=0.0
        Share of `max_iter`, in [0, 1), over which beta rises in equal steps to its value.

    n_beta_cycles : int, default=1
        How often beta rises, each time over `beta_warmup` of a cycle: 1 is a linear warm-up,
        more are cyclical annealing [4]_.

    free_bits : float, default=0.0
        Nats per component below which its KL divergence, averaged over a batch, costs no
        less [5]_: against collapse. Only where the divergence is a sum over the components.

    n_importance_samples : int, default=1
        Draws of z for each row in a training step. With more than 1, the loss is the tighter
        bound of importance weighted autoencoders [6]_: a beta above 1 subtracts beta - 1 times
        the KL divergence from it, and one below 1 weighs the draws by p(x|z) (p(z) / q(z|x))^beta.
        The score stays the ELBO, which such a model may have less of: see
        `skvae.metrics.log_likelihood` for what it gained.

    learning_rate : float, default=3e-3
        Step size of Adam, the largest where it falls.

    learning_rate_schedule : {"cosine", "constant"}, default="cosine"
        "cosine" falls over `max_iter` epochs along half a cosine to 0.

    weight_decay : float, default=0.0
        Decoupled decay, as in AdamW, of the weight matrices of the networks: encoder, decoder
        and those of a `Flow`. Biases and what prior and likelihood learn do not decay.

    max_grad_norm : float or None, default=None
        Largest norm of the gradient of the loss by all parameters together: longer ones are
        shortened to it. Helps where a high learning rate diverges. None: as they are.

    batch_size : int or "auto", default="auto"
        Rows of a training step. "auto" takes the power of two that gives about 16 steps an
        epoch, from 32 to 256. At most the number of training rows.

    max_iter : int, default=300
        Largest number of epochs.

    early_stopping : bool or "auto", default="auto"
        Whether to hold out rows, stop when the training objective (with the final beta) on
        them stops falling, and keep the weights of the best epoch. Where factor analysis is a
        candidate, it is kept instead if the best epoch is not better by more than luck gives: see
        Notes. "auto" holds out rows from 20 rows on; of fewer, it keeps factor analysis, where
        that is a candidate. Training never stops before the warm-up has ended.

    validation_fraction : float, default=0.1
        Share of the rows held out for early stopping, in (0, 1). With `groups`, whole groups are
        held out until this share is reached. Of rows that are read in parts, at most as many are
        judged as one part has room for, with the noise of their draws.

    n_iter_no_change : int, default=50
        Epochs without an improvement by `tol` after which early stopping ends training. Not
        counted while the likelihood holds back the variances of rows.

    tol : float, default=1e-3
        Improvement of the held-out loss that counts, in nats per row. The loss of a row that is
        far above the others is limited: see Notes.

    n_score_draws : int or "auto", default="auto"
        Fixed draws of z for each row in `score_samples`. "auto" is the power of two that reaches 16
        times `n_components`, at least 256. Of an int at least the power of two that reaches four
        times `n_components` is used: fewer draws take less time and have larger errors.

    warm_start : bool, default=False
        If True, `fit` continues from the weights of the previous fit, in its units, for up
        to `max_iter` further epochs; optimiser, schedule and warm-up begin anew. A warning names
        columns that leave these units, as in `partial_fit`. If that fit was stopped before its
        end, by a callback or by Ctrl-C, it goes on instead to its `max_iter`, as if it had not
        been stopped: if it had warm_start=True, too, and the rows, their weights and the
        parameters, but for `random_state`, are the same; else a warning says what is not. For that
        the optimiser is kept.

    device : str, default="auto"
        Where to compute: "cpu", "cuda", "cuda:1", "mps"; "auto" is an accelerator if there
        is one. What was fitted on one device works on every other.

    precision : {"float32", "bf16", "float64"}, default="float32"
        Precision of training. With "bf16" the products of matrices are in bfloat16, which
        pays on recent GPUs with wide layers, and all else, as well as the score, in float32.
        With "float64" everything is, and twice as slow. TF32 is used only where
        ``torch.set_float32_matmul_precision`` has allowed it.

    random_state : int, RandomState instance or None, default=None
        Decides everything that is random in `fit`. With None, numpy's global generator is
        used.

    verbose : bool or int, default=0
        If true, print a line an epoch; above 1, also one for each part of the rows that is
        read, where they are read in parts.

    Attributes
    ----------
    n_iter_ : int
        Number of epochs that were run.

    kept_iter_ : int
        The epoch whose weights were kept, counted from 1: with early stopping the best, else the
        last. 0 where factor analysis was kept. With early stopping the epoch need not be the one
        of the least `validation_loss`: see Notes on rows far above the others.

    history_ : dict of str to ndarray of shape (`n_iter_`,)
        Numbers of every epoch, in nats per row: `loss` (what was minimised),
        `reconstruction` = -E[log p(x|z)], `kl`, `negative_elbo` = reconstruction + kl, and
        `beta`; with early stopping, `validation_loss` and so on for the held-out rows. They are
        those of the network, also where factor analysis was kept.

    noise_variance_ : float or ndarray of shape (n_features,)
        Variance of the observation noise, in squared units of X; 0 for constant columns.
        Only where the likelihood has one for all rows, as `Gaussian("per_feature")` does.

    state_ : dict of str to ndarray
        Weights and units of the model.

    likelihood_ : value
        The likelihood of the columns: that of `likelihood`, or what "auto" has chosen.

    n_features_in_ : int
        Number of features seen during `fit`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features. Only where X had names that are strings.

    See Also
    --------
    VAEImputer : Fill in missing values.
    sklearn.decomposition.PCA : The linear model with one noise variance, exactly.
    sklearn.decomposition.FactorAnalysis : The linear model with a noise variance a column.
    sklearn.mixture.GaussianMixture : A density without latent features.
    skvae.sample : Draw from a Pipeline.

    Notes
    -----
    The ELBO of a row is at most its log-density, by the divergence of q(z|x) from the true
    posterior. `score_samples` integrates over q(z|x) with a fixed set of draws. That is exact for a
    linear decoder with Gaussian noise that doesn't depend on z, under the prior N(0, I), and
    else an estimate: `skvae.metrics.elbo` draws for each row and has a standard error.

    With early stopping the rows to hold out are chosen first. Location and scale of a column,
    whether it is constant, and the least noise variance are those of the rows that are trained on;
    of all rows, where a held-out value is farther than 1e10 scales from these.
    Each epoch is judged by the mean loss of the held-out rows. In it, no row counts as more than
    the median plus 20 times the mean distance from it, so that one row cannot decide. `history_`
    has the plain mean.

    Factor analysis is a candidate where the model can become it: real values, a linear map in both
    networks, no `Vamp` and no flow. Folds of the training rows, of up to 20,000 (2,000 where the
    encoder sees holes; fewer where columns are many), compare its number of components, from 0
    (independent columns) to `n_components`, the shrinkage of its noise variances, and PCA in the
    units of X. Those that are the best most often, where rows are drawn anew, are averaged. The
    epoch that is best is compared with the result on the held-out rows. If the paired difference is
    above so many standard errors, the epoch is kept, else factor analysis, fitted anew to the rows
    held out, too: 9.3 with six rows held out, 2.7 with twelve, 1.6 with thirty, 1.2 with eighty
    and 1 with very many. With groups, the standard error and the number are those of groups.
    Factor analysis is no candidate where a fit goes on from an earlier one.

    `fit` has a `ConvergenceWarning` where early stopping kept the first of 10 epochs or more, and
    where a linear Gaussian model without early stopping ends more than 0.5 nats a row short of
    factor analysis on its training rows.

    `PCA.score` counts a column that was constant in `fit` with its noise variance; `score` does
    not: leave such columns out to compare both.

    Rows that scikit-learn's `working_memory` (1 GiB, as float32) doesn't hold are read in
    parts of a quarter of it, so that X may be a `numpy.memmap` larger than memory. Each
    epoch reads blocks of neighbouring rows in a new random order and shuffles the rows of a
    part, of 64 blocks or more, among them.

    A value that is missing (NaN, None, NA) is no part of the bound: `fit` maximises that of what
    is there, as MIWAE [7]_ does with `n_importance_samples` above 1, and the encoder sees which
    values are there. An encoder that was fitted to complete rows has not learned what to do without
    a value: a warning says so where rows have holes then. Scores of rows with different holes are
    those of different variables: they don't compare.

    Of a table with categories or counts beside real values, the score is that of a mixed density:
    log-probabilities of the former and log-densities of the latter, which have units, added up.
    With `Columns`, "auto" or "categorical", `inverse_transform` and `sample` give back the values
    and the dtypes of the columns of `fit`: the most probable category and the nearest whole
    number, or draws.

    With hidden layers, the encoder sees a value that is more than 20 standard deviations
    from the mean of its column as that far; the density sees it as it is.

    Ctrl-C during `fit` ends training with a warning and keeps the weights of the last complete
    epoch, also where rows are held out.

    A column that is constant in the rows that are trained on adds 0 nats to the score of a row that
    is the same there, and is given back as it was. A column without any value in them is no part
    of the density, with a warning, and is given back as missing. The encoder sees neither of them.

    What `fit` has not seen never counts in a row's favour. A category that it has not seen is
    missing to the encoder, and costs the score as much as the category that is the least probable
    of those seen, given z, and log(n + 1) nats at least, with n the training rows that have a
    value in the column. A value other than the constant of a column costs log(n + 1) nats, by a
    mass of 1 / (n + 1) beside the constant, so that rows with the constant keep their score.
    Infinity, and what is farther than 1e10 scales from the training data, has a score of -inf;
    what asks the encoder alone, such as `transform`, refuses it. Warnings name the columns, and for
    each of them how many rows there are, and the first. A level that the dtype of a column declares
    is known to the model, without a warning, also where no row of `fit` has it.

    `fit` warns of a column in which one value is farther from the others than all of these
    together are from their mean, such as 1e20 or 999999 in place of a missing value: beside it,
    the others hardly differ. In columns of few different values, it must be farther still.

    Computations are in `precision`; results have the dtype of the X of `fit`. On a CPU, with the
    networks of this package, a row has the same bits alone or among others.

    References
    ----------
    .. [1] Auto-Encoding Variational Bayes (D. P. Kingma & M. Welling, 2013),
       https://arxiv.org/abs/1312.6114, eq. 3.
    .. [2] Don't blame the ELBO! A linear VAE perspective on posterior collapse (J. Lucas,
       G. Tucker, R. Grosse & M. Norouzi, 2019), https://arxiv.org/abs/1911.02469.
    .. [3] beta-VAE: learning basic visual concepts with a constrained variational framework
       (I. Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl, eq. 4.
    .. [4] Cyclical annealing schedule: a simple approach to mitigating KL vanishing (H. Fu et
       al., 2019), https://arxiv.org/abs/1903.10145.
    .. [5] Improving variational inference with inverse autoregressive flow (D. P. Kingma et
       al., 2016), https://arxiv.org/abs/1606.04934, eq. 15.
    .. [6] Importance weighted autoencoders (Y. Burda, R. Grosse & R. Salakhutdinov, 2016),
       https://arxiv.org/abs/1509.00519, eq. 8.
    .. [7] MIWAE: deep generative modelling and imputation of incomplete data sets (P.-A. Mattei &
       J. Frellsen, 2019), https://arxiv.org/abs/1812.02633, eq. 3.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> X = load_iris().data
    >>> vae = VAETransformer(n_components=2, max_iter=20, random_state=0).fit(X)
    >>> vae.transform(X).shape
    (150, 2)
    >>> vae.sample(3, random_state=0).shape
    (3, 4)
    >>> bool(vae.score(X) > -10)
    True
    """

    # A name for pickles, skops and links that survives when files move.
    __module__ = "skvae"
    _doc_link_module, _doc_link_template = DOC_LINK

    n_iter_: int
    kept_iter_: int | None
    history_: dict[str, np.ndarray]
    state_: dict[str, np.ndarray]
    n_features_in_: int
    feature_names_in_: np.ndarray

    _parameter_constraints: dict[str, Any] = {
        "n_components": [Interval(Integral, 1, qmc.Sobol.MAXDIM, closed="both")],
        "likelihood": [StrOptions({"auto", *LIKELIHOODS}), Likelihood],
        "prior": [StrOptions(set(PRIORS)), Prior],
        "posterior": [StrOptions(set(POSTERIORS)), Posterior],
        "network": [StrOptions(set(NETWORKS)), Network, tuple],
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "beta": [Interval(Real, 0, None, closed="left")],
        "beta_warmup": [Interval(Real, 0, 1, closed="left")],
        "n_beta_cycles": [Interval(Integral, 1, None, closed="left")],
        "free_bits": [Interval(Real, 0, None, closed="left")],
        "n_importance_samples": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "learning_rate_schedule": [StrOptions(set(SCHEDULES))],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean", StrOptions({"auto"})],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_score_draws": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "warm_start": ["boolean"],
        "device": [str],
        "precision": [StrOptions(set(devices.PRECISIONS))],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_components: int = 8,
        *,
        likelihood: Likelihood | str = "gaussian",
        prior: Prior | Literal["standard_normal"] = "standard_normal",
        posterior: Posterior | Literal["diagonal", "full"] = "diagonal",
        network: Network | Literal["mlp"] | tuple[MakeModule, MakeModule] = "mlp",
        hidden_layer_sizes: int | Sequence[int] = (128, 64),
        activation: Literal["elu", "gelu", "relu", "silu", "softplus", "tanh"] = "tanh",
        beta: float = 1.0,
        beta_warmup: float = 0.0,
        n_beta_cycles: int = 1,
        free_bits: float = 0.0,
        n_importance_samples: int = 1,
        learning_rate: float = 3e-3,
        learning_rate_schedule: Literal["cosine", "constant"] = "cosine",
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int = 300,
        early_stopping: bool | Literal["auto"] = "auto",
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 50,
        tol: float = 1e-3,
        n_score_draws: int | Literal["auto"] = "auto",
        warm_start: bool = False,
        device: str = "auto",
        precision: Literal["float32", "bf16", "float64"] = "float32",
        random_state: RandomState = None,
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.likelihood = likelihood
        self.prior = prior
        self.posterior = posterior
        self.network = network
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.beta = beta
        self.beta_warmup = beta_warmup
        self.n_beta_cycles = n_beta_cycles
        self.free_bits = free_bits
        self.n_importance_samples = n_importance_samples
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.n_score_draws = n_score_draws
        self.warm_start = warm_start
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    # --- fit ------------------------------------------------------------------------------

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Rows,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        groups: Groups | None = None,
    ) -> Self:
        """Fit the model to X.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)
            Training data, at least two rows. It is not changed. Sparse rows are made dense in
            parts that scikit-learn's `working_memory` holds.
        y : Ignored
            Present for the API's sake. One that looks like rows to validate on is refused.
        sample_weight : float or array-like of shape (n_samples,), default=None
            How much each row counts, at least 0; only ratios matter. Means over rows become
            weighted means: mean and standard deviation of the columns, the loss and its terms in
            `history_`, in training and of held-out rows, and the moments of factor analysis.
            Batches and held-out rows are drawn as without weights. Rows of weight 0 are left out,
            as if they weren't in X. None, or the same for all: no weights.
        groups : array-like of shape (n_samples,), default=None
            Which rows belong together, such as visits of one patient, by a label of any kind:
            a number, a string, a date or a tuple. Rows of a group are held out together: else a row
            that is judged has others of its group among those trained on, and a model that knows
            groups by heart looks good. Copies of a row are a group, too: a warning says where most
            rows held out are copies. Standard errors are those of groups. None, or the same label
            in all rows: each row stands for itself.

        Returns
        -------
        self : VAETransformer
            The fitted estimator.

        Raises
        ------
        ValueError
            If X, a weight, a group or a parameter cannot be used, if `y` has as many columns as X
            and either another number of rows or the same names, or if no epoch ended with a finite
            loss. The estimator is then as it was before the call.
        """
        return self._fit(X, y, sample_weight, groups)

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Rows, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Go on training with one pass over X, a block of rows.

        The first block decides the units of the model and which columns are constant, and its
        categories are the ones that the model knows. It should be like all later blocks: a random
        sample of the rows is best. Later blocks are compared with it. A warning names the columns
        whose values are of another order of magnitude than in the first block: the model learns
        them badly. Another one names the columns that were constant there and are not any more:
        the model does not learn them at all. Fit anew then, with other first rows. A first block in
        which a column has no value is refused, since the model could not learn later values there.

        Any block may have missing values, whether or not earlier ones had some: the encoder has
        inputs for them from the first block on. Categories that are to come are announced by the
        dtype of the first block's column, a pandas Categorical or a polars Enum. A category that
        was not announced is taken as missing, with a warning, or raises where the likelihood is
        ``Categorical(handle_unknown="error")``.

        The optimiser goes on from block to block at a constant `learning_rate`, which may be set
        anew between them. No rows are held out, and there is no warm-up: `learning_rate_schedule`,
        `max_iter`, `beta_warmup` and what is about early stopping are not used. Callbacks and
        `verbose` are told nothing.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)
            A block of at least two rows. It is not changed.
        y : Ignored
            Present for the API's sake.
        sample_weight : float or array-like of shape (n_samples,), default=None
            How much each row counts within the block, as in `fit`.

        Returns
        -------
        self : VAETransformer
            The estimator, fitted to all blocks so far; `n_iter_` counts them.

        Raises
        ------
        ValueError
            If X, a weight or a parameter cannot be used, or the loss is not finite. The estimator
            is then as it was before the call.
        """
        job, fitted = prepare(self, X, sample_weight=sample_weight, partial=True)
        (trained,) = execution.train([job], lambda: None, lambda records, states: False)
        if trained.record.interrupted:
            raise KeyboardInterrupt
        report.check_outcome(trained, job.plan, n_varying(job), keep=False)
        return self._become(fitted(trained.record, trained.state))

    @fit_context(prefer_skip_nested_validation=True)
    def _fit_changed(self, X, change, sample_weight=None, groups=None):
        """Fit to the rows that `change` returns for those of X: see `prepare`."""
        return self._fit(X, None, sample_weight, groups, change)

    def _fit(self, X, y=None, sample_weight=None, groups=None, change=None):
        """Fit to X, or to the rows that `change` returns for it: see `prepare`."""
        weighting.check_target(X, y)
        job, fitted = prepare(self, X, None, sample_weight, groups, change)
        callbacks = Callbacks(self, X, y, sample_weight)

        def end_epoch(records, states):
            if self.verbose:
                report.print_epoch(records[0])
            # A callback may be somebody's torch code.
            with torch.inference_mode(False), torch.enable_grad():
                return callbacks.end_epoch(lambda: fitted(records[0], states()[0], goes_on=True))

        def end_part(epoch, share):
            if self.verbose > 1:
                print(f"Iteration {epoch + 1}, {share:.0%} of the rows")

        trained = None
        try:
            (trained,) = execution.train([job], callbacks.begin_epoch, end_epoch, end_part)
            report.check_outcome(trained, job.plan, n_varying(job))
            attributes = fitted(trained.record, trained.state)
            callbacks.end(attributes)
            return self._become(attributes)
        except KeyboardInterrupt:
            if trained is None:
                raise
            trained.record.interrupted = True
            report.check_outcome(trained, job.plan, n_varying(job))
            return self._become(fitted(trained.record, trained.state))

    def _become(self, attributes):
        """Set all fitted attributes at once."""
        kept = {name: v for name, v in vars(self).items() if name != "feature_names_in_"}
        new = object.__new__(type(self))
        vars(new).update(kept | attributes)
        # One assignment, so that Ctrl-C comes either before it or after it.
        self.__dict__ = vars(new) | {"_fitted_model": new._join()}
        return self

    def _join(self):
        """Join the fitted attributes in one object."""
        return FittedModel(
            self._architecture,
            self.state_,
            schema.Schema.of(self, self._categories, self._output),
            seen=self._seen,
            knows_holes=self._has_seen_holes,
            device=self.device,
        )

    @property
    def _fitted(self):
        """The fitted model; it is joined anew if attributes were set since the last call."""
        check_is_fitted(self)
        fitted = self._fitted_model
        # Callbacks set the attributes of an epoch, and users may set others.
        known = fitted is not None and fitted.state is self.state_
        if not (known and fitted.schema.has_names_of(self)):
            self._fitted_model = fitted = self._join()
        elif fitted.device != self.device:
            self._fitted_model = fitted = fitted.on(self.device)
        return fitted

    _fitted_model = None
    # The progress of a fit that was stopped and can go on.
    _progress = None
    # Moments of the features in the rows that decided the units, and whether any rows had holes.
    # They are None for models of older files.
    _first_seen = _has_seen_holes = None

    # How many rows of `fit` had a value in each column. It is None for models of older files.
    _seen = None

    def __getstate__(self) -> dict[str, Any]:
        # The joined object is made again when the file is read.
        state = {k: v for k, v in super().__getstate__().items() if k != "_fitted_model"}
        return files.seal(state, [*self._get_param_names(), *FITTED])

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = [*self._get_param_names(), *FITTED]
        super().__setstate__(files.unseal(state, names))
        if "state_" in vars(self):
            self._fitted_model = self._join()

    def __copy__(self) -> Self:
        new = object.__new__(type(self))
        vars(new).update(vars(self))  # nothing to check
        return new

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "state_")

    # --- inference ------------------------------------------------------------------------

    def transform(self, X: Rows) -> np.ndarray:
        """Posterior means of the rows of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data in the units of `fit`.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Latent features, the same at every call.
        """
        fitted = self._fitted
        data = fitted.read(X)
        Z = np.empty((data.shape[0], fitted.n_components), fitted.dtype_out)
        block = fitted.blocks(data)

        def encode(model, rows):
            return [to_array(model.encode_mean(block(model, rows)))]

        fitted.map_rows(encode, Z)
        block.warn()
        return Z

    def encode(self, X: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Posterior means and standard deviations of the rows of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data in the units of `fit`.

        Returns
        -------
        mean, std : ndarrays of shape (n_samples, n_components)
            Parameters of q(z|x), a normal distribution with independent components.
        """
        fitted = self._fitted
        data = fitted.read(X)
        shape = (data.shape[0], fitted.n_components)
        mean, std = (np.empty(shape, fitted.dtype_out) for _ in range(2))
        block = fitted.blocks(data)

        def encode(model, rows):
            return map(to_array, model.encode_rows(block(model, rows)))

        fitted.map_rows(encode, mean, std)
        block.warn()
        return mean, std

    def sample_posterior(
        self, X: Rows, n_draws: int = 1, random_state: RandomState = None
    ) -> np.ndarray:
        """Draw latent rows from the posterior q(z|x) of each row of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data in the units of `fit`.
        n_draws : int, default=1
            Number of draws for each row.
        random_state : int, RandomState instance or None, default=None
            Decides the draws; None uses numpy's global generator.

        Returns
        -------
        Z : ndarray of shape (n_draws, n_samples, n_components)
            Latent rows, independent of each other.
        """
        fitted = self._fitted
        data = fitted.read(X)
        check_scalar(n_draws, "n_draws", Integral, min_val=1)
        shape = n_draws, data.shape[0], fitted.n_components
        Z = np.empty(shape, fitted.dtype_out)
        block = fitted.blocks(data)

        def draw(model, rows, noise):
            eps = noise(n_draws)
            z = model.encode_draws(block(model, rows)._replace(eps=eps))
            return [to_array(z).swapaxes(0, 1)]

        fitted.map_noise(draw, random_state, Z.swapaxes(0, 1), n_draws=n_draws)
        block.warn()
        return Z

    def inverse_transform(self, X: ArrayLike) -> Any:
        """Expected rows E[x|z] of latent rows z.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_components)
            Latent rows, as from `transform`.

        Returns
        -------
        X_original : ndarray or DataFrame of shape (n_samples, n_features)
            In the units of `fit`; a DataFrame where one was fitted. In a table with columns of
            several kinds, the most probable category, and whole numbers where there were such.
        """
        fitted = self._fitted
        latent = check_array(
            containers.to_validate(X),
            dtype=containers.float_dtypes(X),
            order="C",
            estimator=self,
            input_name="X",
        )
        n_components = fitted.n_components
        if latent.shape[1] != n_components:
            raise ValueError(
                f"X has {latent.shape[1]} columns, but inverse_transform of this VAETransformer "
                f"expects its n_components={n_components}: rows as transform returns them."
            )
        decoded = np.empty((len(latent), fitted.schema.n_columns), fitted.dtype_out)

        def decode(model, rows):
            z = latent[rows]
            if not (z.max() <= FARTHEST and z.min() >= -FARTHEST):  # or NaN
                with np.errstate(over="ignore"):  # of a longdouble, which is infinity then
                    worst = np.abs(z.astype(np.float64)).argmax()  # integers may have no absolute
                raise ValueError(
                    f"X has the value {z.flat[worst]:.6g}. Latent rows are about "
                    f"standard normal, and float32 carries them to {FARTHEST:.0e}: "
                    "check that X are rows as transform returns them."
                )
            z = torch.from_numpy(z.astype(fitted.dtype))
            z = blocks.to_block(z, rows.stop - rows.start, model.varies.device)
            return [fitted.restore(model, model.decode_mean(z))]

        fitted.map_rows(decode, decoded)
        return self._contain(fitted, decoded, X.index if hasattr(X, "iloc") else None)

    def sample(
        self, n_samples: int = 1, random_state: RandomState = None, *, mean: bool = False
    ) -> Any:
        """Draw new rows: z from the prior, then x from p(x|z) with its observation noise.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState instance or None, default=None
            Decides the draws; None uses numpy's global generator. The first rows are the
            same whatever `n_samples`.
        mean : bool, default=False
            If True, return E[x|z] of the drawn z, without observation noise.

        Returns
        -------
        X : ndarray or DataFrame of shape (n_samples, n_features)
            In the units of `fit`; a DataFrame where one was fitted.
        """
        fitted = self._fitted
        check_scalar(n_samples, "n_samples", Integral, min_val=1)
        seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
        drawn = np.empty((n_samples, fitted.schema.n_columns), fitted.dtype_out)

        def draw(model, rows):
            # Each block has its own generators, so the draws do not depend on threads or other
            # blocks. There are two, so that z is the same with and without observation noise.
            rng = np.random.default_rng([seed, rows.start])
            noise = devices.generator(int(rng.integers(2**32)))
            shape = rows.stop - rows.start, model.prior.n_noise(fitted.n_components)
            eps = to_tensor(rng.standard_normal(shape, fitted.dtype), model.varies.device)
            z = model.draw_prior(eps)
            if mean:
                return [fitted.restore(model, model.decode_mean(z))]
            return [fitted.restore(model, model.decode_sample(z, noise), drawn=True)]

        fitted.map_rows(draw, drawn, whole_blocks=True)
        return self._contain(fitted, drawn)

    def score_samples(self, X: Rows) -> np.ndarray:
        """Evidence lower bound of each row: at most its log-density, in nats.

        Always with beta=1, whatever the model was trained with, and in the units of X, so
        that it compares with the `score_samples` of PCA, FactorAnalysis or GaussianMixture
        on the same X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data in the units of `fit`.

        Returns
        -------
        elbo : ndarray of shape (n_samples,)
            Nats, float64. The expectation over q(z|x) is a mean over fixed draws, the same for
            every row and every call; `n_score_draws` says how many. -inf for a row with infinity,
            or with a value that is beyond reach of float32 in the scale of the training data.

        Warns
        -----
        UserWarning
            Of values that `fit` has not seen: see the notes on the class.
        """
        fitted = self._fitted
        data = fitted.read(X, accept_far=True)
        if self.n_score_draws != "auto":
            check_scalar(self.n_score_draws, "n_score_draws", Integral, min_val=1)
        noise = fitted.score_noise(self.n_score_draws)
        elbo = np.empty(data.shape[0])
        block = fitted.blocks(data, accept_far=True)

        def score(model, rows):
            batch, eps = block(model, rows), to_tensor(noise, model.varies.device)
            n_rows = min(len(batch.y), data.shape[0] - rows.start)
            return [to_array(objective.elbo(model, batch._replace(eps=eps, n_rows=n_rows)))]

        fitted.map_rows(score, elbo, n_draws=len(noise))
        elbo -= fitted.log_jacobian
        rows, _, nats = block.costs()
        np.subtract.at(elbo, rows, nats)
        block.warn()
        return elbo

    def score(self, X: Rows, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Mean ELBO of the rows of X: minus the negative ELBO, so greater is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data in the units of `fit`.
        y : Ignored
            Present for the API's sake.
        sample_weight : float or array-like of shape (n_samples,), default=None
            How much each row counts, at least 0: the score is the weighted mean of
            `score_samples`. None: all the same.

        Returns
        -------
        score : float
            Nats per row.
        """
        elbo = self.score_samples(X)
        weight = weighting.weigh(sample_weight, elbo)
        if weight is not None and not np.isfinite(elbo).all():
            elbo, weight = elbo[weight > 0], weight[weight > 0]  # 0 times -inf is no number
        return float(np.average(elbo, weights=weight))

    def to_module(self) -> nn.Module:
        """Make a torch module of the fitted model, to go on in torch.

        Returns
        -------
        module : torch.nn.Module
            Fresh, on the CPU, with the methods ``encode(x) -> (mean, std)`` and
            ``decode(z) -> E[x|z]`` for tensors of shape (n, n_features) and
            (n, n_components), in the units of X. A category is as many features as it has
            values, zeros and a one. Changing the module doesn't change the estimator.
            The units are float64: call ``.float()`` before moving it to a device without.
        """
        return self._fitted.to_module()

    def _contain(self, fitted, X, index=None):
        """Rows of numbers in the values of `fit`, in its container or that of `set_output`."""
        container = _get_output_config("transform", self)["dense"]
        return fitted.schema.write(X, index, None if container == "default" else container)

    # --- what comes out -------------------------------------------------------------------

    @property
    def likelihood_(self) -> Likelihood:
        """The likelihood of the columns: what `likelihood` says, or what "auto" has chosen."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError("A VAETransformer has no likelihood_ before fit.")
        return part_of("likelihood", self._likelihood)

    @property
    def noise_variance_(self) -> float | np.ndarray:
        """Variance of the observation noise in squared units of X: float or (n_features,)."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError("A VAETransformer has no noise_variance_ before fit.")
        likelihood = self._fitted.likelihood
        if isinstance(getattr(likelihood, "noise", None), Real):
            return float(likelihood.noise)
        # The whole model is not built: notebooks show this property with every estimator.
        variance = likelihood.variance(self._fitted.likelihood_module)
        if variance is None:
            raise AttributeError(f"{likelihood!r} has no noise variance of its own.")
        scale = self.state_["scale"]
        variance = to_array(variance).astype(np.float64)
        if getattr(likelihood, "noise", None) == "shared":
            return float(variance[0] * scale.max() ** 2)
        return variance * scale**2

    @property
    def _n_features_out(self):
        return self._architecture["n_components"]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags
