"""The estimator `VAETransformer`.

A fitted estimator consists of numpy arrays and plain Python values, so files hold no device and
copies are safe. `FittedModel` makes the torch model of them, and keeps it for the next call.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from skvae._fit.preparation import Change, n_varying, prepare
from skvae._inference.fitted import FittedModel, Noise
from skvae._model import objective
from skvae._model.architecture import part_of
from skvae._model.member import SCHEDULES, Record
from skvae._model.vae import VAE, State
from skvae._typing import Groups, RandomState, Rows, fit_context
from skvae.likelihoods import LIKELIHOODS, Likelihood
from skvae.networks import ACTIVATIONS, NETWORKS, Network
from skvae.posteriors import POSTERIORS, Posterior
from skvae.priors import PRIORS, Prior

MakeModule: TypeAlias = Callable[[int, int], nn.Module]  # (n_in, n_out) to a module
Arrays: TypeAlias = Iterable[np.ndarray]  # the results for a block of rows

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

    The model is p(x) = ∫ p(x|z) p(z) dz, with a prior p(z) and a decoder network in p(x|z). `fit`
    learns it together with an encoder network q(z|x): Adam maximises the evidence lower bound
    (ELBO) [1]_.

    The score is the ELBO in nats per row, in the units of X, always with beta=1. scikit-learn
    maximises scores, so a grid search over `beta` and `n_components` picks the smallest held-out
    negative ELBO.

    X needs no scaling: the model standardises its inputs and accounts for it in the density. X may
    have missing values, and may be a table with columns of several kinds.

    Parameters
    ----------
    n_components : int, default=8
        Number of latent features.

    likelihood : str or value, default="gaussian"
        Distribution of a row given z, a value of `skvae.likelihoods` or its name. "gaussian" is
        `Gaussian()`: real values, with a noise variance for each row and column. "laplace" and
        "student_t" are the same for columns with outliers. "bernoulli" is `Bernoulli()`, for yes
        and no, "continuous_bernoulli" is for numbers in [0, 1], "categorical" for categories,
        "poisson" and "negative_binomial" for counts. `ZeroInflated` is for counts with many zeros,
        `DiscretizedLogistic` for grey levels. `Columns` gives each part of a table its own
        likelihood. "auto" makes such parts by dtype: real and whole numbers are "gaussian", bools
        "bernoulli", strings, objects and categories "categorical". Your own class inherits from
        `Likelihood`.

    prior : {"standard_normal"} or value, default="standard_normal"
        Distribution of z before a row is seen, a value of `skvae.priors`: "standard_normal" is
        N(0, I); `Mixture` and `Vamp` are learned.

    posterior : {"diagonal", "full"} or value, default="diagonal"
        Distribution of z given a row, a value of `skvae.posteriors`: "diagonal" is normal with
        independent components, "full" is normal with any covariance, `Flow` is not normal.

    network : {"mlp"}, value or pair of callables, default="mlp"
        Encoder and decoder, a value of `skvae.networks`: "mlp" is `MLP()`, `Conv` is for images. In
        a pair of callables ``(n_in, n_out) -> torch.nn.Module``, the first makes the encoder and
        the second the decoder, from (n, n_in) to (n, n_out). If values may be missing, and in
        `partial_fit`, the encoder has twice as many inputs: the values, and a mask of the values
        that are there. The output for a row must not depend on other rows or on random numbers. A
        search trains models with equal networks together; functions of a module are equal, and two
        lambdas are not.

    hidden_layer_sizes : int or tuple of int, default=(128, 64)
        Widths of the encoder's hidden layers; the decoder has them in reverse order. With
        ``()`` encoder and decoder are linear, and the model is probabilistic PCA [2]_
        (``Gaussian("shared")``) or factor analysis (``Gaussian("per_feature")``). With the standard
        normal prior its training begins with the factor analysis of the training rows.

    activation : {"elu", "gelu", "relu", "silu", "softplus", "tanh"}, default="tanh"
        Activation of the hidden layers.

    beta : float, default=1.0
        Weight of the KL divergence in the training loss [3]_, at least 0. The score does not use
        it.

    beta_warmup : float, default=0.0
        Share of `max_iter`, in [0, 1), over which beta rises in equal steps to its value.

    n_beta_cycles : int, default=1
        How often beta rises, each time over `beta_warmup` of a cycle: 1 is a linear warm-up, a
        larger number is cyclical annealing [4]_.

    free_bits : float, default=0.0
        Nats per component. A component whose KL divergence, averaged over a batch, is smaller costs
        as much as this [5]_. It prevents collapse, and needs a divergence that is a sum over the
        components.

    n_importance_samples : int, default=1
        Draws of z for each row in a training step. With more than 1, the loss is the tighter bound
        of importance weighted autoencoders [6]_: a beta above 1 subtracts beta - 1 times the KL
        divergence from it, and a beta below 1 weighs the draws by
        p(x|z) (p(z) / q(z|x))^beta. The score is still the ELBO, which may be lower for such a
        model; `skvae.metrics.log_likelihood` shows its gain.

    learning_rate : float, default=3e-3
        Step size of Adam; with a schedule, the largest one.

    learning_rate_schedule : {"cosine", "constant"}, default="cosine"
        "cosine" falls over `max_iter` epochs along half a cosine to 0.

    weight_decay : float, default=0.0
        Decoupled decay, as in AdamW, of the weight matrices of the networks: encoder, decoder
        and the networks of a `Flow`. Biases and the parameters of prior and likelihood do not
        decay.

    max_grad_norm : float or None, default=None
        Largest norm of the gradient of the loss with respect to all parameters together. A longer
        gradient is shortened to it, which helps if a high learning rate diverges. None: no limit.

    batch_size : int or "auto", default="auto"
        Rows of a training step. "auto" takes the power of two that gives about 16 steps an
        epoch, from 32 to 256. It is at most the number of training rows.

    max_iter : int, default=300
        Largest number of epochs.

    early_stopping : bool or "auto", default="auto"
        Whether to hold out rows, to stop when the training objective (with the final beta) on them
        stops falling, and to keep the weights of the best epoch. If the model can become factor
        analysis, factor analysis is kept unless the best epoch is better by more than luck: see
        Notes. "auto" holds out rows if there are 20 rows or more; with fewer rows, it keeps factor
        analysis, if the model can become that. Training never stops before the warm-up has ended.

    validation_fraction : float, default=0.1
        Share of the rows held out for early stopping, in (0, 1). With `groups`, whole groups are
        held out until this share is reached. If rows are read in parts, the held-out rows that are
        judged, with the noise of their draws, need no more room than one part.

    n_iter_no_change : int, default=50
        Early stopping ends training after this many epochs without an improvement by `tol`. Epochs
        in which the likelihood holds back the variances of rows do not count.

    tol : float, default=1e-3
        Least improvement of the held-out loss that counts, in nats per row. The loss of a row that
        is far above the others is limited: see Notes.

    n_score_draws : int or "auto", default="auto"
        Fixed draws of z for each row in `score_samples`. "auto" is the power of two that reaches 16
        times `n_components`, at least 256. A smaller int than the power of two that reaches four
        times `n_components` is replaced by it. Fewer draws take less time and have larger errors.

    warm_start : bool, default=False
        If True, `fit` continues from the weights of the previous fit, in its units, for up
        to `max_iter` further epochs; optimiser, schedule and warm-up begin anew. A warning names
        columns that leave these units, as in `partial_fit`. If a callback or Ctrl-C stopped the
        previous fit, `fit` goes on to the `max_iter` of that fit, with its optimiser, as if it had
        not been stopped. This needs warm_start=True in that fit too, and the same rows, weights of
        rows and parameters, except for `random_state`. A warning says what has changed otherwise.

    device : str, default="auto"
        Where to compute: "cpu", "cuda", "cuda:1", "mps"; "auto" is an accelerator if there
        is one. A model that was fitted on one device works on every other.

    precision : {"float32", "bf16", "float64"}, default="float32"
        Precision of training. With "bf16" matrix products are in bfloat16, which pays on recent
        GPUs with wide layers; all else, and the score, is in float32. With "float64" everything is
        in float64, which takes twice as long. TF32 is used only if
        ``torch.set_float32_matmul_precision`` allows it.

    random_state : int, RandomState instance or None, default=None
        Decides everything that is random in `fit`. None uses numpy's global generator.

    verbose : bool or int, default=0
        If true, `fit` prints a line for each epoch; above 1, also a line for each part of the rows,
        if they are read in parts.

    Attributes
    ----------
    n_iter_ : int
        Number of epochs that were run.

    kept_iter_ : int
        The epoch whose weights were kept, counted from 1: the best one with early stopping, and
        otherwise the last one. It is 0 if factor analysis was kept. The best epoch may differ from
        the epoch of the least `validation_loss`: see Notes on rows far above the others.

    history_ : dict of str to ndarray of shape (`n_iter_`,)
        Numbers of every epoch, in nats per row: `loss` (the minimised one), `reconstruction` =
        -E[log p(x|z)], `kl`, `negative_elbo` = reconstruction + kl, and `beta`; with early
        stopping, `validation_loss` and so on for the held-out rows. They are the numbers of the
        network, even if factor analysis was kept.

    noise_variance_ : float or ndarray of shape (n_features,)
        Variance of the observation noise, in squared units of X; 0 for constant columns.
        Only for a likelihood with one variance for all rows, such as `Gaussian("per_feature")`.

    state_ : dict of str to ndarray
        Weights and units of the model.

    likelihood_ : value
        The likelihood of the columns: that of `likelihood`, or the choice of "auto".

    n_features_in_ : int
        Number of features seen during `fit`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features. Only if X has names that are strings.

    See Also
    --------
    VAEImputer : Fill in missing values.
    sklearn.decomposition.PCA : The linear model with one noise variance, exactly.
    sklearn.decomposition.FactorAnalysis : The linear model with a noise variance a column.
    sklearn.mixture.GaussianMixture : A density without latent features.
    skvae.sample : Draw from a Pipeline.

    Notes
    -----
    **Score.** The ELBO of a row is its log-density minus the divergence of q(z|x) from the true
    posterior. `score_samples` integrates over q(z|x) with a fixed set of draws. This is exact for a
    linear decoder with Gaussian noise that does not depend on z, under the prior N(0, I). Otherwise
    it is an estimate: `skvae.metrics.elbo` draws anew for each row and has a standard error.
    `PCA.score` counts a column that was constant in `fit` with its noise variance; `score` does
    not. Leave such columns out to compare both.

    **Early stopping.** `fit` chooses the held-out rows first. The rows that are trained on decide
    the location and scale of a column, whether it is constant, and the least noise variance. All
    rows decide these if a held-out value is farther than 1e10 scales from them. The mean loss of
    the held-out rows judges each epoch. In this mean, no row counts as more than the median plus 20
    times the mean distance from it, so that one row cannot decide. `history_` has the plain mean.

    **Factor analysis.** The model can become factor analysis if it has real values, a linear map in
    both networks, no `Vamp` and no flow, and if the fit does not go on from an earlier one. Folds
    of the training rows compare the numbers of components from 0 (independent columns) to
    `n_components`, the shrinkage of the noise variances, and PCA in the units of X. They have up to
    20,000 rows; 2,000 if values are missing, and fewer if there are many columns. The candidates
    that are best most often when rows are drawn anew are averaged. The best epoch is then compared
    with the result on the held-out rows. The epoch is kept if the paired difference is above a
    number of standard errors: 9.3 with six rows held out, 2.7 with twelve, 1.6 with thirty, 1.2
    with eighty and 1 with very many. Otherwise factor analysis is kept, fitted again to all rows.
    With groups, the standard error and the number of rows are those of groups.

    **Warnings.** `fit` has a `ConvergenceWarning` if early stopping kept the first of 10 epochs or
    more, and if a linear Gaussian model without early stopping ends more than 0.5 nats a row short
    of factor analysis on its training rows. `fit` also warns of a column in which one value is
    farther from the others than all of these together are from their mean, such as 1e20 or 999999
    in place of a missing value: beside it, the others hardly differ. In columns of few different
    values, it must be farther still.

    **Rows that memory does not hold.** If scikit-learn's `working_memory` (1 GiB, as float32)
    does not hold the rows, they are read in parts of a quarter of it, so X may be a `numpy.memmap`
    larger than memory. Each epoch reads blocks of neighbouring rows in a new random order, and
    shuffles the rows of a part, of 64 blocks or more, among them.

    **Missing values.** A missing value (NaN, None, NA) is no part of the bound: `fit` maximises the
    bound of the values that are there, as MIWAE [7]_ does with `n_importance_samples` above 1. The
    encoder sees which values are there. An encoder that was fitted to complete rows has not learned
    to do without a value, and a warning says so if rows have missing values later. Scores of rows
    with different missing values are scores of different variables, and do not compare.

    **Tables.** If a table has categories or counts beside real values, the score is that of a mixed
    density: the sum of log-probabilities, and of log-densities, which have units. With `Columns`,
    "auto" or "categorical", `inverse_transform` and `sample` return the values and dtypes of the
    columns of `fit`: `inverse_transform` the most probable category and the nearest whole number,
    `sample` draws.

    **Values that fit has not seen.** Such a value never counts in a row's favour. A column that is
    constant in the rows that are trained on adds 0 nats to the score of a row with the same value;
    another value costs log(n + 1) nats, with n the training rows that have a value in the column.
    A category that `fit` has not seen is missing to the encoder. It costs the score as much as the
    least probable of the known categories, given z, and at least log(n + 1) nats. A level that the
    dtype of a column declares is known, without a warning, even if no row of `fit` has it. Infinity
    and values farther than 1e10 scales from the training data have a score of -inf; methods that
    use the encoder alone, such as `transform`, refuse them. Warnings name the columns, with the
    number of such rows and the first one. A column without any value in `fit` is no part of the
    density, with a warning, and comes back as missing; a constant column comes back as it was. The
    encoder sees neither. With hidden layers, the encoder sees a value that is more than 20 standard
    deviations from the mean of its column as one at that distance; the density sees it as it is.

    **Ctrl-C** during `fit` ends training with a warning and keeps the weights of the last complete
    epoch, even if rows are held out.

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
            Present for the API's sake. A `y` that looks like validation rows raises an error.
        sample_weight : float or array-like of shape (n_samples,), default=None
            How much each row counts, at least 0; only ratios matter. Means over rows become
            weighted means: mean and standard deviation of the columns, the loss and its terms in
            `history_`, for training rows and held-out rows, and the moments of factor analysis.
            Batches and held-out rows are drawn as without weights. Rows of weight 0 are left out,
            as if they were not in X. None, or the same for all: no weights.
        groups : array-like of shape (n_samples,), default=None
            Which rows belong together, such as visits of one patient, by a label of any kind:
            a number, a string, a date or a tuple. Rows of a group are held out together. Otherwise
            the model trains on rows of the groups that judge it, and a model that knows groups by
            heart looks good. Copies of a row should be a group, too: a warning says if most
            held-out rows are copies. Standard errors are those of groups. None, or the same label
            in all rows: each row stands for itself.

        Returns
        -------
        self : VAETransformer
            The fitted estimator.

        Raises
        ------
        ValueError
            If X, a weight, a group or a parameter is not valid, if `y` has as many columns as X
            and either another number of rows or the same names, or if no epoch ended with a finite
            loss. The estimator is then as it was before the call.
        """
        return self._fit(X, y, sample_weight, groups)

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Rows, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Go on training with one pass over X, a block of rows.

        The first block decides the units of the model, which columns are constant, and the
        categories that the model knows. It should be like all later blocks: a random sample of the
        rows is best. Later blocks are compared with it. A warning names the columns whose values
        have another order of magnitude than in the first block: the model learns them badly.
        Another warning names the columns that were constant there and vary now: the model does not
        learn them at all. Fit anew then, with other first rows. A first block in which a column has
        no value raises an error, since the model could not learn later values of it.

        Any block may have missing values: the encoder has inputs for them from the first block on.
        The dtype of a column in the first block, a pandas Categorical, a polars Enum or a
        dictionary of pyarrow, announces categories of later blocks. A category that was not
        announced is taken as missing, with a warning; with
        ``Categorical(handle_unknown="error")`` it raises an error.

        The optimiser goes on from block to block at a constant `learning_rate`, which may be set
        anew between them. No rows are held out, and there is no warm-up: `learning_rate_schedule`,
        `max_iter`, `beta_warmup` and the parameters of early stopping are not used. Callbacks are
        not called, and `verbose` prints nothing.

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
            If X, a weight or a parameter is not valid, or the loss is not finite. The estimator is
            then as it was before the call.
        """
        job, fitted = prepare(self, X, sample_weight=sample_weight, partial=True)
        (trained,) = execution.train([job], lambda: None, lambda records, states: False)
        if trained.record.interrupted:
            raise KeyboardInterrupt
        report.check_outcome(trained, job.plan, n_varying(job), keep=False)
        return self._become(fitted(trained.record, trained.state))

    @fit_context(prefer_skip_nested_validation=True)
    def _fit_changed(
        self, X: Any, change: Change, sample_weight: Any = None, groups: Any = None
    ) -> Self:
        """Fit to the rows that `change` returns for those of X: see `prepare`."""
        return self._fit(X, None, sample_weight, groups, change)

    def _fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        groups: Any = None,
        change: Change | None = None,
    ) -> Self:
        """Fit to X, or to the rows that `change` returns for it: see `prepare`."""
        weighting.check_target(X, y)
        job, fitted = prepare(self, X, None, sample_weight, groups, change)
        callbacks = Callbacks(self, X, y, sample_weight)

        def end_epoch(records: Sequence[Record], states: Callable[[], list[State]]) -> bool:
            if self.verbose:
                report.print_epoch(records[0])
            # A callback may be somebody's torch code.
            with torch.inference_mode(False), torch.enable_grad():
                return callbacks.end_epoch(lambda: fitted(records[0], states()[0], goes_on=True))

        def end_part(epoch: int, share: float) -> None:
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

    def _become(self, attributes: Mapping[str, Any]) -> Self:
        """Set all fitted attributes at once."""
        kept = {name: v for name, v in vars(self).items() if name != "feature_names_in_"}
        new = object.__new__(type(self))
        new.__dict__.update({**kept, **attributes})
        # One assignment, so that Ctrl-C comes either before it or after it.
        self.__dict__ = vars(new) | {"_fitted_model": new._join()}
        return self

    def _join(self) -> FittedModel:
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
    def _fitted(self) -> FittedModel:
        """The fitted model; it is joined anew if attributes were set since the last call."""
        check_is_fitted(self)
        fitted = self._fitted_model
        # Callbacks set the attributes of an epoch, and users may set others.
        if (
            fitted is None
            or fitted.state is not self.state_
            or not fitted.schema.has_names_of(self)
        ):
            fitted = self._join()
        self._fitted_model = fitted = fitted.on(self.device)
        return fitted

    _fitted_model: FittedModel | None = None
    # The progress of a fit that was stopped and can go on.
    _progress: Mapping[str, Any] | None = None
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
        new.__dict__.update(vars(self))  # nothing to check
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

        def encode(model: VAE, rows: slice) -> Arrays:
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

        def encode(model: VAE, rows: slice) -> Arrays:
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

        def draw(model: VAE, rows: slice, noise: Noise) -> Arrays:
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
            In the units of `fit`; a DataFrame if `fit` got one. A table with columns of several
            kinds has the most probable categories, and whole numbers in columns of whole numbers.
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

        def decode(model: VAE, rows: slice) -> Arrays:
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
        return self._contain(fitted, decoded, containers.index_of(X))

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
            In the units of `fit`; a DataFrame if `fit` got one.
        """
        fitted = self._fitted
        check_scalar(n_samples, "n_samples", Integral, min_val=1)
        seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
        drawn = np.empty((n_samples, fitted.schema.n_columns), fitted.dtype_out)

        def draw(model: VAE, rows: slice) -> Arrays:
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

        It is always the ELBO with beta=1, in the units of X, so it compares with the
        `score_samples` of PCA, FactorAnalysis or GaussianMixture on the same X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data in the units of `fit`.

        Returns
        -------
        elbo : ndarray of shape (n_samples,)
            Nats, float64. The expectation over q(z|x) is a mean over `n_score_draws` fixed draws,
            the same for every row and every call. A row with infinity, or with a value that is too
            far from the training data for float32, has -inf.

        Warns
        -----
        UserWarning
            If X has values that `fit` has not seen: see the notes of the class.
        """
        fitted = self._fitted
        data = fitted.read(X, accept_far=True)
        if self.n_score_draws != "auto":
            check_scalar(self.n_score_draws, "n_score_draws", Integral, min_val=1)
        noise = fitted.score_noise(self.n_score_draws)
        elbo = np.empty(data.shape[0])
        block = fitted.blocks(data, accept_far=True)

        def score(model: VAE, rows: slice) -> Arrays:
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
            `score_samples`. None: each row counts the same.

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
        """Make a torch module of the fitted model, for further work in torch.

        Returns
        -------
        module : torch.nn.Module
            A new module, on the CPU, with the methods ``encode(x) -> (mean, std)`` and
            ``decode(z) -> E[x|z]`` for tensors of shape (n, n_features) and (n, n_components), in
            the units of X. A column of categories has a feature for each category, 0 or 1. Changes
            of the module do not change the estimator. The units are float64: call ``.float()``
            before moving it to a device without float64.
        """
        return self._fitted.to_module()

    def _contain(self, fitted: FittedModel, X: np.ndarray, index: Any = None) -> Any:
        """Rows of numbers in the values of `fit`, in its container or that of `set_output`."""
        container = _get_output_config("transform", self)["dense"]
        return fitted.schema.write(X, index, None if container == "default" else container)

    # --- what comes out -------------------------------------------------------------------

    @property
    def likelihood_(self) -> Likelihood:
        """The likelihood of the columns: that of `likelihood`, or the choice of "auto"."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError("A VAETransformer has no likelihood_ before fit.")
        return part_of("likelihood", self._likelihood)

    @property
    def noise_variance_(self) -> float | np.ndarray:
        """Variance of the observation noise in squared units of X: float or (n_features,)."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError("A VAETransformer has no noise_variance_ before fit.")
        likelihood = self._fitted.likelihood
        noise = getattr(likelihood, "noise", None)
        if isinstance(noise, Real):
            return float(noise)
        # The whole model is not built: notebooks show this property with every estimator.
        variance = likelihood.variance(self._fitted.likelihood_module)
        if variance is None:
            raise AttributeError(f"{likelihood!r} has no noise variance of its own.")
        scale = self.state_["scale"]
        in_units = to_array(variance).astype(np.float64)
        if noise == "shared":
            return float(in_units[0] * scale.max() ** 2)
        return in_units * scale**2

    @property
    def _n_features_out(self) -> int:
        return self._architecture["n_components"]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags
