"""The objective: bounds, losses and their gradients."""

import math

import numpy as np
import pytest
import torch
from torch import distributions as D

from skvae import _model, _objective
from skvae._arrays import Columns, score_noise


def normals(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def describe(n_features, n_components, hidden=()):
    return {
        "n_features": n_features,
        "n_components": n_components,
        "likelihood": "gaussian",
        "network": "mlp",
        "hidden_layer_sizes": hidden,
        "activation": "tanh",
    }


def linear_model(n_features, n_components, hidden=(), seed=0):
    """A model in float64 in units of its own, with weights drawn at random."""
    architecture = describe(n_features, n_components, hidden)
    columns = Columns(np.zeros(n_features), np.ones(n_features))
    model = _model.from_state(architecture, _model.initial_state(architecture, columns, 0))
    model.double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(0.5 * normals(*p.shape, seed=seed + i))
    return model


def stacked(models, *shape):
    """A stack of models of this architecture."""
    states = [
        {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
        for model in models
    ]
    return _model.stack([describe(*shape)] * len(models), states, torch.device("cpu"))


def fixed(log_likelihood, kl):
    """A model that gives these terms whatever it sees."""
    return lambda y, eps: (torch.tensor(log_likelihood), torch.tensor(kl))


# --- elbo -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_features", "n_components"), [(1, 1), (4, 1), (5, 2), (3, 6)])
def test_elbo_is_short_of_log_p_by_the_divergence_from_the_true_posterior(n_features, n_components):
    # Of a linear model everything is known: log p(x) = ELBO + KL(q(z|x) || p(z|x)). The
    # integrand is quadratic in z, so the draws of the score integrate it exactly.
    model, y = linear_model(n_features, n_components), normals(7, n_features, seed=9)
    eps = torch.tensor(score_noise(1, n_components))[:, None, :]
    with torch.no_grad():
        elbo = _objective.elbo(model, y, eps)
        mean, std = model.encode_rows(y)
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


def test_elbo_equals_log_p_where_q_is_the_true_posterior():
    model, y = linear_model(3, 1), normals(7, 3)
    weight, bias = model.decoder[0].weight.detach(), model.decoder[0].bias.detach()
    variance = model.likelihood.variance(model.observation).detach()
    precision = 1 + (weight[:, 0] ** 2 / variance).sum()
    gain = (weight.T / variance) / precision
    log_std = -0.5 * precision.log()
    with torch.no_grad():
        model.encoder[0].weight.copy_(torch.cat([gain, 0 * gain]))
        model.encoder[0].bias.copy_(torch.stack([-gain[0] @ bias, 15 * (log_std / 15).atanh()]))
        elbo = _objective.elbo(model, y, torch.tensor(score_noise(1, 1))[:, None, :])
    log_p = D.MultivariateNormal(bias, weight @ weight.T + variance.diag()).log_prob(y)
    torch.testing.assert_close(elbo, log_p, rtol=1e-11, atol=1e-11)


def test_elbo_sums_draws_in_float64():
    model = fixed([[2.0**24, 1.0], [1.0, 2.0], [1.0, 3.0]], [0.5, 1.5])  # float32
    elbo = _objective.elbo(model, None, None)
    assert elbo.dtype == torch.float64
    assert elbo.tolist() == [(2**24 + 2) / 3 - 0.5, 0.5]  # 2**24 + 1 is none of float32


# --- the loss ---------------------------------------------------------------------------------


def test_total_terms_are_sums_over_rows_of_means_over_draws():
    first, second = [[-1.0, -2.0, -4.0], [-3.0, 2.0, 0.0]], [[-8.0, 0.0, 0.0], [0.0, 0.0, -8.0]]
    kl = torch.tensor([[0.5, 0.25, 1.0], [0.0, 3.0, 0.0]])
    terms = _objective.total_terms(torch.tensor([first, second]), kl)
    assert terms.tolist() == [[2 + 0 + 2, 8], [1.75, 3]]
    (alone,) = _objective.total_terms(torch.tensor([first]), kl[:1]).T.tolist()
    assert alone == [4, 1.75]


def test_reconstruction_plus_kl_is_minus_the_elbo():
    model, y, eps = linear_model(4, 2, (5,)), normals(7, 4), normals(3, 7, 2, seed=1)
    with torch.no_grad():
        log_likelihood, kl = model(y, eps)
        (total,) = _objective.total_terms(log_likelihood[None], kl[None]).sum(0)
        elbo = _objective.elbo(model, y, eps).sum()
    torch.testing.assert_close(total, -elbo, rtol=1e-13, atol=0)


@pytest.mark.parametrize("betas", [[0.0], [0.25], [1.0], [4.0], [0.0, 0.25, 4.0]])
@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("n_rows", [1, 7])
def test_loss_gradient_is_that_of_the_mean_reconstruction_plus_beta_kl(betas, n_draws, n_rows):
    n_models = len(betas)
    models = [linear_model(4, 2, (5,), seed=100 * m) for m in range(n_models)]
    y, eps = normals(n_models, n_rows, 4), normals(n_models, n_draws, n_rows, 2, seed=1)
    totals, of_each = [], []
    for m, (model, beta) in enumerate(zip(models, betas, strict=True)):
        log_likelihood, kl = model(y[m], eps[m])
        loss = -log_likelihood.mean() + beta * kl.mean()
        of_each.append(torch.autograd.grad(loss, list(model.parameters())))
        totals.append(torch.stack([-log_likelihood.mean(0).sum(), kl.sum()]).detach())
    expected = [torch.stack(own) for own in zip(*of_each, strict=True)]

    with torch.inference_mode():
        beta = torch.tensor(betas).double()[:, None]
        stack = stacked(models, 4, 2, (5,))
        terms, gradients = _objective.loss_gradient(stack, y, eps, beta)

    torch.testing.assert_close(terms, torch.stack(totals, dim=1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-12)
    assert all((gradient != 0).any() for gradient in gradients)


def test_loss_gradient_of_a_stack_is_that_of_each_member_alone():
    models = [linear_model(4, 2, (5,), seed=100 * m) for m in range(3)]
    y, eps = normals(3, 7, 4), normals(3, 1, 7, 2, seed=1)
    beta = torch.tensor([[0.5], [1.0], [4.0]]).double()
    with torch.inference_mode():
        stack = stacked(models, 4, 2, (5,))
        terms, gradients = _objective.loss_gradient(stack, y, eps, beta)
        for m, model in enumerate(models):
            one = slice(m, m + 1)
            alone, own = stacked([model], 4, 2, (5,)), (y[one], eps[one], beta[one])
            expected_terms, expected = _objective.loss_gradient(alone, *own)
            # float64: rounding of sums of a few numbers.
            torch.testing.assert_close(terms[:, one], expected_terms, rtol=1e-12, atol=1e-12)
            of_member = [gradient[one] for gradient in gradients]
            torch.testing.assert_close(of_member, expected, rtol=1e-12, atol=1e-12)


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
    shares = [_objective.warm_up(epoch, n_epochs) for epoch in range(len(expected))]
    assert shares == expected


def test_warm_up_is_never_0_and_never_above_1():
    shares = [_objective.warm_up(epoch, 100) for epoch in range(300)]
    assert min(shares) > 0
    assert max(shares) == 1
    assert math.isclose(shares[49], 50 / 101)
