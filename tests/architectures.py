"""Architectures of small models, which tests of several files share."""

from skvae._model.architecture import Architecture


def architecture_of(n_features=4, n_components=2, hidden=(), **others):
    """That of a model whose parts are plain, but for those that are given."""
    plain = {
        "n_features": n_features,
        "n_components": n_components,
        "likelihood": "gaussian",
        "network": "mlp",
        "hidden_layer_sizes": hidden,
        "activation": "tanh",
    }
    return Architecture.of(plain | others)
