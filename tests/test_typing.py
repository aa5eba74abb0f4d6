"""Public functions are annotated, and the uses that type checkers read run."""

import inspect

import matplotlib.pyplot as plt
import pytest
import typed_uses
from test_docs import CALLABLES

USES = [
    use
    for name, use in vars(typed_uses).items()
    if inspect.isfunction(use) and use.__module__ == "typed_uses" and name not in ("rows", "small")
]


@pytest.mark.parametrize("name", CALLABLES)
def test_public_callable_has_a_type_for_each_argument_and_for_what_it_returns(name):
    signature = inspect.signature(CALLABLES[name])
    bare = [
        own
        for own, parameter in signature.parameters.items()
        if own not in ("self", "cls") and parameter.annotation is inspect.Parameter.empty
    ]
    if not inspect.isclass(CALLABLES[name]) and signature.return_annotation is signature.empty:
        bare.append("return")
    assert not bare


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_use_that_type_checkers_read_runs(use, tmp_path):
    plt.switch_backend("agg")
    use(*[tmp_path] * len(inspect.signature(use).parameters))  # a folder, if it writes files
    plt.close("all")
