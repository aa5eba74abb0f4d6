"""Networks: the laws of all, their formulas, and the weights they start from."""

import math
import pickle
import re

import numpy as np
import own_parts
import pytest
import torch
from architectures import architecture_of
from network_laws import HIDDEN, Case, NetworkLaws
from torch import nn

from skvae import VAETransformer
from skvae._data.statistics import Moments
from skvae._model.state import initial_state
from skvae.likelihoods import Gaussian
from skvae.networks import (
    ACTIVATIONS,
    MLP,
    NETWORKS,
    Conv,
    Own,
    become_linear,
    is_linear,
)

# Of each activation, its formula.
FORMULAS = {
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "relu": lambda x: x * (x > 0),
    "silu": lambda x: x / (1 + (-x).exp()),
    "softplus": lambda x: (1 + x.exp()).log(),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
}

every_mlp = pytest.mark.parametrize(
    "network",
    [
        MLP(*options)
        for options in [(), (False, 0, False, False), (True,), (False, 0.3), (True, 0.3, True)]
    ],
    ids=repr,
)
every_activation = pytest.mark.parametrize("activation", list(ACTIVATIONS))
every_depth = pytest.mark.parametrize("hidden", HIDDEN, ids=str)


def built(network, hidden, activation="tanh", n_in=4, n_out=2, seed=0):
    """A module in float64 with every parameter away from 0, biases too."""
    module = network.encoder(n_in, n_out, hidden, activation).double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype))
    return module


def rows(n_rows=7, n_in=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n_rows, n_in, generator=g, dtype=torch.float64)


CASES = [
    Case(MLP()),
    Case(MLP(linear=False)),
    Case(MLP(residual=True)),
    Case(MLP(layer_norm=True)),
    Case(MLP(residual=True, dropout=0.3, layer_norm=True)),
    Case(Conv((1, 8, 8), (2, 3)), 64),
    Case(Conv((3, 9, 11), (3, 2)), 297),
    Case(own_parts.Dense()),
]


class TestEveryNetwork(NetworkLaws):
    @pytest.fixture(params=CASES, ids=lambda case: repr(case.network))
    def case(self, request):
        return request.param

    @pytest.mark.parametrize("activation", sorted({*ACTIVATIONS} - {"tanh"}))
    @pytest.mark.parametrize("n_models", [1, 3])
    def test_a_stack_pulls_back_through_every_activation(self, case, activation, n_models):
        self.check_vjp(case, "encoder", (6, 3), activation, n_models)


@every_mlp
@every_depth
def test_mlp_takes_rows_in_any_number_of_dimensions(network, hidden):
    module, x = built(network, hidden), rows()
    torch.testing.assert_close(module(x.expand(3, 7, 4)), module(x).expand(3, 7, 2))


@every_mlp
@pytest.mark.parametrize("hidden", [(), (7,)], ids=str)
@pytest.mark.parametrize("activation", ["tanh", "silu"])
@pytest.mark.parametrize("n_rows", [32, 96])
def test_network_rounds_a_row_the_same_at_every_place_in_a_block(
    network, hidden, n_rows, activation
):
    # Blocks have a multiple of 32 rows: what doesn't fill two vectors is rounded otherwise by some
    # activations, and on some machines a vector is 16 values.
    differ = []
    for n_in in (1, 2, 3, 5, 6, 10, 13, 17, 30, 31, 57, 64, 100):
        for n_out in (1, 2, 3, 4, 5, 7, 8, 9, 10, 13, 15, 16, 17):
            module = built(network, hidden, activation, n_in, n_out).float()
            x = rows(1, n_in).float().expand(n_rows, n_in).contiguous()
            output = module(x)
            if not torch.equal(output, output[:1].expand(n_rows, n_out)):
                differ.append((n_in, n_out))
    assert not differ


# --- MLP --------------------------------------------------------------------------------------


@every_depth
@every_activation
@pytest.mark.parametrize("linear", [False, True])
def test_mlp_equals_its_formula(hidden, activation, linear):
    module, x = built(MLP(linear=linear), hidden, activation), rows()
    weights = dict(module.named_parameters())
    beside = weights.pop("linear", torch.zeros(2, 4).double())
    *inner, (weight, bias) = zip(*[iter(weights.values())] * 2, strict=True)
    assert [len(b) for _, b in inner] == list(hidden)
    h = x
    for w, b in inner:
        h = FORMULAS[activation](h @ w.T + b)
    expected = h @ weight.T + bias + x @ beside.T
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    assert beside.any() == (linear and len(hidden) > 0)


def test_mlp_starts_uniform_with_the_variance_of_glorot_and_biases_at_0():
    module = MLP().encoder(300, 500, (200,), "relu")
    MLP().initialise(module, torch.Generator().manual_seed(0))
    for layer, (n_in, n_out) in zip(module[::2], [(300, 200), (200, 500)], strict=True):
        variance = 2 / (n_in + n_out)
        # A uniform sample of n values: relative standard error of its variance 0.9 / sqrt(n).
        assert layer.weight.var().item() == pytest.approx(variance, rel=4.5 / math.sqrt(6e4))
        bound = math.sqrt(3 * variance)
        assert 0.999 * bound < layer.weight.abs().max().item() <= bound
        assert (layer.bias == 0).all()
    assert (module.linear == 0).all()


def test_names_of_networks_stand_for_values():
    assert NETWORKS["mlp"] == MLP()


# --- MLP: what hidden layers may add ----------------------------------------------------------


@every_depth
@every_activation
def test_mlp_with_residual_and_layer_norm_equals_its_formula(hidden, activation):
    module, x = built(MLP(residual=True, layer_norm=True), hidden, activation), rows()
    h, weights = x, dict(module.named_parameters())
    for i, width in enumerate(hidden):
        prefix = f"hidden.{i}."
        a = h @ weights[prefix + "linear.weight"].T + weights[prefix + "linear.bias"]
        unit = (a - a.mean(-1, keepdim=True)) / (
            a.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        a = unit * weights[prefix + "norm.weight"] + weights[prefix + "norm.bias"]
        skip = h
        if h.shape[-1] != width:
            skip = h @ weights[prefix + "skip.weight"].T + weights[prefix + "skip.bias"]
        h = FORMULAS[activation](a) + skip
    last = "last." if hidden else "0."
    expected = h @ weights[last + "weight"].T + weights[last + "bias"]
    if hidden:
        expected = expected + x @ weights["linear"].T
    torch.testing.assert_close(module(x), expected, rtol=1e-11, atol=1e-11)


def test_mlp_adds_an_input_of_equal_width_without_further_weights():
    module = MLP(residual=True).encoder(5, 2, (5, 5), "relu")
    assert all("skip" not in name for name, _ in module.named_parameters())


@pytest.mark.parametrize("network", [MLP(), MLP(residual=True), MLP(layer_norm=True)], ids=repr)
@pytest.mark.parametrize("hidden", [(), (5,)])
def test_a_network_can_become_any_linear_map(network, hidden):
    module, x = built(network, hidden), rows()
    assert is_linear(module)
    assert is_linear(built(MLP(linear=False), hidden)) == (hidden == ())
    weight, bias = torch.randn(2, 4).double(), torch.randn(2).double()
    with torch.no_grad():
        become_linear(module, weight, bias)
    torch.testing.assert_close(module(x), x @ weight.T + bias, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_dropout_leaves_out_its_share_of_the_units_and_scales_the_others(dropout):
    n, width = 2000, 50
    # No unit of softplus is 0 of itself.
    module = built(MLP(dropout=dropout, linear=False), (width,), "softplus")
    module.last = nn.Identity()
    x = rows(1).expand(n, 4)
    with torch.no_grad():
        all_units = module(x)
        some = module(x, rows(n, width, seed=5))
    dropped = some == 0
    # Five standard errors.
    share = dropped.double().mean().item()
    assert abs(share - dropout) < 5 * math.sqrt(dropout * (1 - dropout) / (n * width))
    torch.testing.assert_close(some[~dropped], (all_units / (1 - dropout))[~dropped])


def test_dropout_drops_units_of_each_hidden_layer_by_noise_of_its_own():
    module = built(MLP(dropout=0.5), (6, 3), "softplus")
    assert module.n_noise == 9
    x, kept = rows(), torch.full((7, 9), math.inf).double()
    seen = []
    for layer in module.hidden:
        layer.register_forward_hook(lambda layer, x, y: seen.append(y))
    noise = kept.clone()
    noise[:, 1], noise[:, 6 + 2] = -math.inf, -math.inf
    module(x, noise)
    assert [(y == 0).all(0).nonzero().flatten().tolist() for y in seen] == [[1], [2]]


def test_dropout_keeps_all_units_of_a_row_with_infinite_noise():
    module, x = built(MLP(dropout=0.5), (6, 3)), rows()
    assert torch.equal(module(x, torch.full((7, 9), math.inf).double()), module(x))


def test_dropout_is_for_training_alone(quick, X):
    vae = quick(network=MLP(dropout=0.5)).fit(X)
    np.testing.assert_array_equal(vae.transform(X), vae.transform(X))
    np.testing.assert_array_equal(vae.transform(X[:1]), vae.transform(X)[:1])
    with_none = quick(network=MLP(dropout=1e-9)).fit(X)
    assert (with_none.transform(X) != vae.transform(X)).any()  # it was there in training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": 1}, "The residual of an MLP must be True or False. Got 1."),
        ({"layer_norm": "no"}, "The layer_norm of an MLP must be True or False. Got 'no'."),
        *(
            ({"dropout": p}, f"The dropout of an MLP must be a number in [0, 1). Got {p!r}.")
            for p in (-0.1, 1.0, 1.5, math.nan, None, "0.5", True)
        ),
    ],
)
def test_mlp_refuses_what_is_no_such_layer(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MLP(**options)


# --- Conv -------------------------------------------------------------------------------------

IMAGES = [(1, 8, 8), (3, 9, 11), (2, 8, 13), (1, 28, 28), (1, 17, 10)]


@pytest.mark.parametrize("image_shape", IMAGES, ids=str)
@pytest.mark.parametrize("channels", [(2,), (3, 2), (4, 3, 2)], ids=str)
@pytest.mark.parametrize("n_per_pixel", [1, 2])
@pytest.mark.parametrize("hidden", [(), (5,)], ids=str)
def test_conv_maps_images_to_latent_rows_and_back(image_shape, channels, n_per_pixel, hidden):
    network, n_pixels = Conv(image_shape, channels), math.prod(image_shape)
    encoder = network.encoder(n_pixels, 4, hidden, "relu")
    decoder = network.decoder(2, n_per_pixel * n_pixels, hidden[::-1], "relu")
    for module in (encoder, decoder):
        network.initialise(module, torch.Generator().manual_seed(0))
    assert encoder(torch.zeros(5, n_pixels)).shape == (5, 4)
    assert decoder(torch.zeros(5, 2)).shape == (5, n_per_pixel * n_pixels)


def test_conv_sees_where_a_pixel_is():
    network = Conv((2, 9, 11), (3,))
    encoder = network.encoder(2 * 9 * 11, 1, (), "relu").double()
    network.initialise(encoder, torch.Generator().manual_seed(0))
    shape = torch.randn(2, 9, 11, generator=torch.Generator().manual_seed(0)).double()
    (convolution,) = (layer for layer in encoder if isinstance(layer, nn.Conv2d))
    seen = []
    convolution.register_forward_hook(lambda layer, x, y: seen.append((x[0], y)))
    encoder(shape.reshape(1, -1))
    ((image, after),) = seen
    assert torch.equal(image[0], shape)  # channels, then rows, then columns
    assert after.shape == (1, 3, 5, 6)  # half of odd sizes, rounded up


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            (
                {"image_shape": shape},
                f"The image_shape of a Conv must be a tuple of positive integers. Got {shape!r}.",
            )
            for shape in ([1, 8, 8], (), (1, 8.0, 8), (0, 8, 8), 64)
        ),
        *(
            (
                {"image_shape": shape},
                "The image_shape of a Conv must be (channels, height, width), with height and "
                f"width of at least 8. Got {shape!r}.",
            )
            for shape in ((8, 8), (1, 7, 8), (1, 8, 7), (1, 1, 8, 8))
        ),
        *(
            (
                {"image_shape": (1, 8, 8), "channels": channels},
                f"The channels of a Conv must be a tuple of positive integers. Got {channels!r}.",
            )
            for channels in ((), (3, 0), 3, [3])
        ),
    ],
)
def test_conv_refuses_what_is_no_shape_of_images(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Conv(**options)


def test_conv_for_other_images_than_those_of_x_raises_before_training(quick, X):
    vae, message = quick(network=Conv((1, 8, 8))), "is for rows of 64 features. Got rows of 4: give"
    with pytest.raises(ValueError, match=re.escape(message)):
        vae.fit(X)
    assert not hasattr(vae, "state_")


@pytest.mark.parametrize("likelihood", ["gaussian", "continuous_bernoulli"])
@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 9, 11)], ids=str)
def test_conv_fits_and_gives_back_images(quick, likelihood, image_shape):
    X = np.random.default_rng(0).random((40, math.prod(image_shape)))
    vae = quick(network=Conv(image_shape, (4, 3)), likelihood=likelihood, max_iter=2).fit(X)
    assert vae.inverse_transform(vae.transform(X)).shape == X.shape
    assert vae.sample(3, random_state=0).shape == (3, X.shape[1])
    assert np.isfinite(vae.score(X))
    np.testing.assert_array_equal(vae.transform(X[:1]), vae.transform(X)[:1])


# --- Own --------------------------------------------------------------------------------------


def affine(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, 5), nn.Tanh(), nn.Linear(5, n_out))


def normalised(n_in, n_out):
    """With a buffer besides its parameters."""
    module = affine(n_in, n_out)
    module.append(nn.BatchNorm1d(n_out).eval())
    return module


def test_own_modules_start_from_random_state_and_leave_torchs_generator(quick, X):
    torch.rand(1)  # so that no seed gives the state
    before = torch.get_rng_state()
    first, same, other = (
        quick(network=(affine, affine), random_state=seed).fit(X).transform(X) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert torch.equal(torch.get_rng_state(), before)


def test_own_modules_have_the_first_values_that_their_callables_give_them():
    def filled(n_in, n_out):
        module = nn.Linear(n_in, n_out)
        nn.init.constant_(module.weight, 0.25)
        nn.init.constant_(module.bias, -0.5)
        return module

    described = architecture_of(3, network=Own(filled, filled))
    state = initial_state(described, Moments(np.zeros(3), np.ones(3)), 0)
    for part in ("encoder", "decoder"):
        assert (state[f"{part}.weight"] == 0.25).all()
        assert (state[f"{part}.bias"] == -0.5).all()


def test_own_modules_with_buffers_fit_score_and_come_back(quick, X):
    vae = quick(network=(normalised, affine)).fit(X)
    again = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(again.score_samples(X), vae.score_samples(X))
    np.testing.assert_array_equal(again.transform(X[:1]), vae.transform(X)[:1])


def narrow(n_in, n_out):
    return nn.Linear(n_in, n_out + 1)


def deaf(n_in, n_out):
    return nn.Linear(n_in + 1, n_out)


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            (narrow, affine),
            "The encoder of the network must give outputs of shape (n, 4) for an input of shape "
            "(n, 4). Got (2, 5) for n = 2.",
        ),
        (
            (affine, narrow),
            "The decoder of the network must give outputs of shape (n, 4) for an input of shape "
            "(n, 2). Got (2, 5) for n = 2.",
        ),
        ((Pair, affine), "of shape (n, 4). Got tuple for n = 2."),
        ((deaf, affine), "The encoder of the network failed on an input of shape (2, 4)"),
        ((affine, deaf), "It must take (n, 2) and give (n, 4)."),
    ],
)
def test_own_modules_of_wrong_shapes_raise_before_training(quick, X, network, message):
    vae = quick(network=network, likelihood=Gaussian("per_feature"))
    with pytest.raises(ValueError, match=re.escape(message)):
        vae.fit(X)
    assert not hasattr(vae, "state_")


@pytest.mark.parametrize("network", [(affine,), (affine, 3), (affine, affine, affine), ()])
def test_a_network_that_is_no_pair_of_callables_is_refused(X, network):
    with pytest.raises(ValueError, match="or a pair of callables"):
        VAETransformer(network=network).fit(X)


@pytest.mark.parametrize("network", [MLP(residual=True), MLP(residual=True, layer_norm=True)])
def test_a_residual_network_starts_about_where_a_plain_one_does(network):
    X = np.random.default_rng(0).normal(size=(80, 4))
    plain, residual = (
        VAETransformer(2, network=value, max_iter=2, random_state=0).fit(X).score(X)
        for value in ("mlp", network)
    )
    # With a last layer as wide as Glorot's: -1372 nats against -9.6.
    assert residual > plain - 5


class Dropping(nn.Module):
    """A linear layer with dropout of torch's, which asks the global generator."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.Linear(n_in, n_out))

    def forward(self, x):
        return self.layers(x)


def test_dropout_in_a_module_of_ones_own_is_off():
    X = np.random.default_rng(0).normal(size=(80, 4))
    vae = VAETransformer(2, network=(Dropping, Dropping), max_iter=2, random_state=0)
    state = torch.random.get_rng_state()
    first, second = vae.fit(X).transform(X), vae.transform(X)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(vae.fit(X).transform(X), first)
    assert torch.equal(torch.random.get_rng_state(), state)
