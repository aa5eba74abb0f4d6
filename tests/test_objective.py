"""The objective: bounds, losses and their gradients."""

import math

import numpy as np
import pytest
import torch
from architectures import architecture_of
from likelihood_laws import normals
from torch import distributions as D

from skvae._backend.quadrature import score_noise
from skvae._data.statistics import Moments
from skvae._model import objective
from skvae._model.rows import Batch
from skvae._model.stack import Stack
from skvae._model.state import from_state, initial_state
from skvae.likelihoods import Gaussian


def describe(n_features, n_components, hidden=()):
    return architecture_of(n_features, n_components, hidden, likelihood=Gaussian("per_feature"))


def linear_model(n_features, n_components, hidden=(), seed=0):
    """A model in float64 in units of its own, with weights drawn at random."""
    architecture = describe(n_features, n_components, hidden)
    columns = Moments(np.zeros(n_features), np.ones(n_features))
    model = from_state(architecture, initial_state(architecture, columns, 0))
    model.double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(0.4 * normals(*p.shape, seed=seed + i))
    return model


def stacked(models, *shape):
    """A stack of models of this architecture."""
    states = [
        {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
        for model in models
    ]
    return Stack([describe(*shape)] * len(models), states, torch.device("cpu"))


def fixed(log_likelihood, kl):
    """A model that gives these terms whatever it sees."""
    return lambda batch: (torch.tensor(log_likelihood), torch.tensor(kl))


# --- elbo -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_features", "n_components"), [(1, 1), (4, 1), (5, 2), (3, 6)])
def test_elbo_is_short_of_log_p_by_the_divergence_from_the_true_posterior(n_features, n_components):
    # Of a linear model everything is known: log p(x) = ELBO + KL(q(z|x) || p(z|x)). The
    # integrand is quadratic in z, so the draws of the score integrate it exactly.
    model, y = linear_model(n_features, n_components), normals(7, n_features, seed=9)
    eps = torch.tensor(score_noise(1, n_components))[:, None, :]
    with torch.no_grad():
        elbo = objective.elbo(model, Batch(y, eps))
        mean, std = model.encode_rows(Batch(y))
        weight, bias = model.decoder[0].weight, model.decoder[0].bias
        variance = model.likelihood.variance(model.observation)

    log_p = D.MultivariateNormal(bias, weight @ weight.T + variance.diag()).log_prob(y)
    precision = torch.eye(n_components).double() + (weight.T / variance) @ weight
    posterior_mean = ((y - bias) / variance) @ weight @ precision.inverse()
    posterior = D.MultivariateNormal(posterior_mean, precision_matrix=precision)
    q = D.MultivariateNormal(mean, torch.diag_embed(std**2))
    gap = D.kl_divergence(q, posterior)
    assert (gap > 0.01).all()
    torch.testing.assert_close(elbo, log_p - gap, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("log_likelihood", "kl", "expected"),
    [
        (  # one divergence of each component; 2**24 + 1 is none of float32
            [[2.0**24, 1.0], [1.0, 2.0], [1.0, 3.0]],
            [[[0.25, 0.25], [1.5, 0.0]]],
            [(2**24 + 2) / 3 - 0.5, 0.5],
        ),
        (  # a divergence of each draw
            [[0.0, 0.0]] * 3,
            [[[2.0**24], [1.0]], [[1.0], [2.0]], [[1.0], [3.0]]],
            [-(2**24 + 2) / 3, -2],
        ),
    ],
)
def test_elbo_sums_draws_in_float64(log_likelihood, kl, expected):
    elbo = objective.elbo(fixed(log_likelihood, kl), Batch(torch.empty(2, 1), None))
    assert elbo.dtype == torch.float64
    assert elbo.tolist() == expected


# --- the loss ---------------------------------------------------------------------------------


def weights_of(betas, free_bits=None, *, importance=False):
    """Weights of the members of a stack, in float64."""
    column = None if free_bits is None else torch.tensor(free_bits).double()[:, None]
    return objective.Weights(torch.tensor(betas).double()[:, None], column, importance)


def row_noise(y):
    """Rows y (M, B, D) that no noise goes with."""
    return y.new_empty(*y.shape[:2], 0)


def test_numbers_of_the_loss_are_means_over_rows_and_draws():
    first, second = [[-1.0, -2.0, -4.0], [-3.0, 2.0, 0.0]], [[-8.0, 0.0, 0.0], [0.0, 0.0, -8.0]]
    log_likelihood = torch.tensor([first, second]).double()
    # Two components; of the second member's, one has none.
    kl = torch.tensor([[[[0.5, 0.0], [0.0, 0.25], [0.5, 0.5]]], [[[0, 0], [3.0, 0], [0, 0]]]])
    numbers = objective.loss((log_likelihood, kl.double()), weights_of([2.0, 0.5])).numbers
    expected = [[4 + 2 * 1.75, 8 + 0.5 * 3], [4, 8], [1.75, 3]]
    torch.testing.assert_close(3 * numbers, torch.tensor(expected).double(), rtol=1e-14, atol=0)
    (alone,) = objective.loss(
        (log_likelihood[:1], kl[:1].double()), weights_of([2.0])
    ).numbers.T.tolist()
    assert alone == numbers[:, 0].tolist()


def test_numbers_of_the_loss_are_means_over_draws_whose_kl_is_estimated():
    log_likelihood = torch.tensor([[[-1.0, -2.0], [-3.0, 2.0]]]).double()
    kl = torch.tensor([[[[1.0], [2.0]], [[3.0], [-2.0]]]]).double()
    numbers = objective.loss((log_likelihood, kl), weights_of([3.0])).numbers
    assert numbers.tolist() == [[1 + 3 * 1.0], [1.0], [1.0]]


def mean_loss(terms, beta, free_bits, importance):
    """The losses of the module's docstring, word by word, of one model."""
    log_likelihood, kl = terms  # (S, B), (S|1, B, L|1)
    if importance:
        log_w = log_likelihood - min(beta, 1) * kl.sum(-1)
        return max(beta - 1, 0) * kl.mean() - (log_w.exp().mean(0).log()).mean()
    of_components = kl.mean((0, 1))
    if free_bits is not None:
        of_components = torch.stack([max(component, free_bits) for component in of_components])
    return -log_likelihood.mean() + beta * of_components.sum()


def check_loss_gradient(betas, free_bits, importance, n_draws, n_rows):
    """`loss_gradient` of a stack gives the values and the gradients of autograd."""
    n_models = len(betas)
    models = [linear_model(4, 2, (5,), seed=100 * m) for m in range(n_models)]
    y, eps = normals(n_models, n_rows, 4), normals(n_models, n_draws, n_rows, 2, seed=1)
    totals, of_each = [], []
    for m, (model, beta) in enumerate(zip(models, betas, strict=True)):
        log_likelihood, kl = model(Batch(y[m], eps[m]), by_draw=importance)
        own = None if free_bits is None else torch.tensor(free_bits[m]).double()
        loss = mean_loss((log_likelihood, kl), beta, own, importance)
        of_each.append(torch.autograd.grad(loss, list(model.parameters())))
        kl = kl.mean(0).sum(-1).mean()
        totals.append(torch.stack([loss, -log_likelihood.mean(), kl]).detach())
    expected = [torch.stack(own) for own in zip(*of_each, strict=True)]

    with torch.inference_mode():
        stack = stacked(models, 4, 2, (5,))
        weights = weights_of(betas, free_bits, importance=importance)
        numbers, gradients = objective.loss_gradient(stack, Batch(y, eps, row_noise(y)), weights)

    torch.testing.assert_close(numbers, torch.stack(totals, dim=1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-12)
    assert all((gradient != 0).any() for gradient in gradients)


several_betas = pytest.mark.parametrize("betas", [[0.0], [0.25], [1.0], [4.0], [0.0, 0.25, 4.0]])


@several_betas
@pytest.mark.parametrize(("importance", "n_draws"), [(False, 1), (False, 3), (True, 2), (True, 5)])
@pytest.mark.parametrize("n_rows", [1, 7])
def test_loss_gradient_is_that_of_the_formula(betas, importance, n_draws, n_rows):
    check_loss_gradient(betas, None, importance, n_draws, n_rows)


@several_betas
@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("n_rows", [1, 7])
@pytest.mark.parametrize("place", ["below", "between", "above"])
def test_loss_gradient_with_free_bits_is_that_of_their_formula(betas, n_draws, n_rows, place):
    y = normals(len(betas), n_rows, 4)
    free_bits = []
    for m in range(len(betas)):  # beside the divergences of the two components
        with torch.no_grad():
            batch = Batch(y[m], normals(1, 1, 2))
            kl = linear_model(4, 2, (5,), seed=100 * m)(batch).kl.mean((0, 1))
        places = {"below": kl.min() / 2, "between": kl.mean(), "above": 2 * kl.max()}
        free_bits.append(places[place].item())
    check_loss_gradient(betas, free_bits, False, n_draws, n_rows)


def test_loss_gradient_of_members_with_unlike_free_bits_is_that_of_each_formula():
    check_loss_gradient([1.0, 0.5, 4.0, 1.0], [0.0, 0.9, 0.3, 100.0], False, 3, 7)


# --- free bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("free_bits", "importance", "factorises"),
    [
        (None, False, True),
        (None, False, False),
        ([0.0, 0.2, 5.0], False, True),
        (None, True, True),
    ],
    ids=["plain", "estimated", "free bits", "importance"],
)
def test_losses_of_rows_have_the_loss_as_their_mean(weighted, free_bits, importance, factorises):
    n_draws, n_rows = 5, 11
    log_likelihood = -normals(3, n_draws, n_rows).square()
    shape = (3, n_draws, n_rows, 1) if importance or not factorises else (3, 1, n_rows, 3)
    kl = normals(*shape, seed=1).square()
    betas = [0.5, 1.0, 3.0]
    weights = weights_of(betas, free_bits, importance=importance)
    row_weight = normals(3, n_rows, seed=2).exp() if weighted else None
    if weighted:
        row_weight = row_weight / row_weight.mean(1, keepdim=True)
    rows = objective.row_losses((log_likelihood, kl), weights, row_weight)
    expected = objective.loss((log_likelihood, kl), weights, row_weight).numbers[0]
    assert rows.shape == (3, n_rows)
    mean = (rows if row_weight is None else row_weight * rows).mean(1)
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12)


def test_the_loss_of_a_row_is_its_reconstruction_and_its_own_divergence():
    log_likelihood, kl = -normals(2, 5, 11).square(), normals(2, 1, 11, 3, seed=1).square()
    rows = objective.row_losses((log_likelihood, kl), weights_of([0.5, 2.0]))
    for m, beta in enumerate([0.5, 2.0]):
        expected = beta * kl[m, 0].sum(1) - log_likelihood[m].mean(0)
        torch.testing.assert_close(rows[m], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_the_loss_of_a_row_of_importance_samples_is_that_of_the_row_alone(beta):
    log_likelihood, log_ratio = -normals(1, 5, 11).square(), normals(1, 5, 11, 1, seed=1)
    weights = weights_of([beta], importance=True)
    rows = objective.row_losses((log_likelihood, log_ratio), weights)[0]
    for b in range(11):
        own = log_likelihood[:, :, b : b + 1], log_ratio[:, :, b : b + 1]
        alone = objective.loss(own, weights).numbers[0, 0]
        torch.testing.assert_close(rows[b], alone, rtol=1e-12, atol=1e-12)


def test_free_bits_hold_the_mean_divergence_of_each_component_from_below():
    kl = torch.tensor([[[[0.0, 0.4], [0.6, 1.6]]]]).double()  # means over the rows: 0.3 and 1
    loss = objective.loss((torch.zeros(1, 1, 2).double(), kl), weights_of([2.0], [0.5]))
    # The rows' own are 0, 0.4, 0.6 and 1.6: held one by one, the loss were 2 * 1.6.
    assert loss.numbers.flatten().tolist() == pytest.approx([2 * (0.5 + 1), 0, 0.3 + 1])
    assert loss.g_kl.tolist() == [[[[0, 1], [0, 1]]]]


def test_a_component_below_the_free_bits_has_no_pull_from_the_divergence():
    model = linear_model(4, 2, (5,))
    y, eps = normals(1, 7, 4), normals(1, 1, 7, 2, seed=1)
    with torch.inference_mode():
        stack = stacked([model], 4, 2, (5,))
        of_each = [
            objective.loss_gradient(stack, Batch(y, eps, row_noise(y)), weights)[1]
            for weights in (weights_of([5.0], [1e3]), weights_of([0.0]))
        ]
    torch.testing.assert_close(*of_each, rtol=1e-12, atol=1e-13)


# --- importance samples -----------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 5, 64])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 1.5, 4.0])
def test_loss_of_importance_samples_weighs_the_ratio_up_to_beta_1_and_then_adds_the_kl(k, beta):
    log_p, log_ratio = normals(1, k, 3), normals(1, k, 3, 1, seed=1)
    numbers = objective.loss((log_p, log_ratio), weights_of([beta], importance=True)).numbers
    log_w = log_p - min(beta, 1) * log_ratio.squeeze(-1)
    expected = -(torch.logsumexp(log_w, 1) - math.log(k)).mean()
    expected = expected + max(beta - 1, 0) * log_ratio.mean()
    torch.testing.assert_close(numbers[0, 0], expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(numbers[1, 0], -log_p.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(numbers[2, 0], log_ratio.mean(), rtol=1e-13, atol=1e-15)


def test_loss_of_importance_samples_whose_weights_no_float_holds_is_finite():
    log_p = torch.tensor([[[-2e4, 3e4], [-2e4, 3e4]]])
    loss = objective.loss(
        (log_p, torch.zeros(1, 2, 2, 1)), objective.Weights(torch.ones(1, 1), None, True)
    )
    assert loss.numbers[0].item() == pytest.approx(-5e3, rel=1e-6)
    assert loss.g_log_likelihood.flatten().tolist() == [-0.25] * 4


def narrow(shrink, n_draws):
    """Terms of q = N(0, shrink^2) under N(0, 1), with x ~ N(z, 1) at x = 0; log p(x)."""
    eps = normals(n_draws, 1)
    z, standard = shrink * eps, D.Normal(torch.zeros(()).double(), 1.0)
    log_ratio = standard.log_prob(eps) - math.log(shrink) - standard.log_prob(z)
    log_p = D.Normal(0, math.sqrt(2)).log_prob(torch.zeros(1)).item()
    return (standard.log_prob(z)[None], log_ratio[None, ..., None]), log_p


@pytest.mark.parametrize("beta", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("shrink", [0.5, 0.1, 0.01])
def test_minus_the_loss_of_importance_samples_is_below_log_p_for_every_q_and_beta_from_1(
    beta, shrink
):
    # The mean over 20 000 sets of 10 draws. The divergence from N(0, 1) of the narrowest q is 4.1.
    (log_p_of_draw, log_ratio), log_p = narrow(shrink, 200_000)
    sets = log_p_of_draw.view(1, 10, -1), log_ratio.view(1, 10, -1, 1)
    bound = -objective.loss(sets, weights_of([beta], importance=True)).numbers[0].item()
    # At 1 and the widest q the bound is within 0.02 of log p; the means' own error is 0.003.
    assert bound < log_p
    kl = D.kl_divergence(D.Normal(0.0, shrink), D.Normal(0.0, 1.0)).item()
    at_1 = -objective.loss(sets, weights_of([1.0], importance=True)).numbers[0].item()
    assert bound == pytest.approx(at_1 - (beta - 1) * kl, abs=0.02)


@pytest.mark.parametrize("beta", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("shrink", [1.0, 0.5, 0.1, 0.01])
def test_minus_the_loss_of_importance_samples_has_a_bound_for_beta_below_1(beta, shrink):
    # Hoelder: E_q[w] <= (E_p[p(x|z)^(1/beta)])^beta, here of the normal density at 0.
    (log_p_of_draw, log_ratio), _ = narrow(shrink, 200_000)
    sets = log_p_of_draw.view(1, 10, -1), log_ratio.view(1, 10, -1, 1)
    bound = -objective.loss(sets, weights_of([beta], importance=True)).numbers[0].item()
    # E_p[exp(-z^2 / (2 beta))] = (1 + 1 / beta)^(-1/2).
    most = -0.5 * math.log(2 * math.pi) - 0.5 * beta * math.log1p(1 / beta)
    assert bound < most


@pytest.mark.parametrize("n_components", [1, 3])
def test_bound_of_importance_samples_rises_with_their_number_to_log_p(n_components):
    # Burda et al., theorem 1; of a linear model log p(x) is known.
    model, y = linear_model(4, n_components), normals(7, 4, seed=9)
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.zero_()  # q is the prior, which covers every posterior
        weight, bias = model.decoder[0].weight, model.decoder[0].bias
        variance = model.likelihood.variance(model.observation)
        p_x = D.MultivariateNormal(bias, weight @ weight.T + variance.diag())
        log_p = p_x.log_prob(y).mean().item()
        eps, bounds = normals(20_000, 7, n_components, seed=1), []
        log_likelihood, kl = model(Batch(y, eps), by_draw=True)
        for k in (1, 10, 1000, 20_000):
            terms = log_likelihood.unflatten(0, (-1, k)), kl.unflatten(0, (-1, k))
            weights = weights_of([1.0] * (20_000 // k), importance=True)
            bounds.append(-objective.loss(terms, weights).numbers[0].mean().item())
    assert bounds == sorted(bounds)
    assert bounds[-1] - bounds[0] > 0.01
    # Of the 20 000 draws' own spread.
    assert bounds[-1] == pytest.approx(log_p, abs=0.02)


def test_terms_by_draw_have_the_mean_of_the_known_divergence():
    model, y, eps = linear_model(4, 2, (5,)), normals(7, 4), normals(100_000, 1, 2, seed=1)
    with torch.no_grad():
        estimates, known = model(Batch(y, eps), by_draw=True).kl, model(Batch(y, eps)).kl.sum(-1)
    assert estimates.shape == (100_000, 7, 1)
    error = estimates.std(0) / math.sqrt(100_000)
    assert ((estimates.mean(0) - known.T).abs() < 5 * error).all()


# --- warm-up ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_epochs", "expected"),
    [
        (0, [1, 1, 1]),
        (1, [1 / 2, 1, 1]),
        (3, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]),
    ],
)
def test_warm_up_rises_in_equal_steps_to_1_after_n_epochs_and_stays(n_epochs, expected):
    shares = [objective.warm_up(epoch, n_epochs) for epoch in range(len(expected))]
    assert shares == expected
