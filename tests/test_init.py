"""What `import skvae` brings: every public module, and nothing that takes long to import."""

import importlib.util
import json
import subprocess
import sys

import pytest

import skvae

MODULES = [
    "inspection",
    "likelihoods",
    "metrics",
    "networks",
    "onnx",
    "posteriors",
    "priors",
    "safetensors",
]
# Packages of the extras, but for pandas and rich, which scikit-learn imports itself.
HEAVY = ["matplotlib", "onnx", "onnxscript", "safetensors", "skl2onnx", "zuko"]
# What is loaded after each step, in one process where nothing else was imported.
STEPS = """
import json, sys, warnings
import joblib, scipy.special, scipy.stats, sklearn.model_selection, sklearn.pipeline, torch
before, found = set(sys.modules), {}
import skvae
dir(skvae)
found["imported"] = sorted(set(sys.modules) - before)
warnings.simplefilter("ignore")
import numpy
X = numpy.eye(60)
skvae.VAETransformer(2, max_iter=1, random_state=0).fit(X).score(X)
found["fitted"] = sorted(set(sys.modules) - before)
found["names"] = [getattr(skvae, name).__name__ for name in NAMES]
found["named"] = sorted(set(sys.modules) - before)
if CONVERTS:
    skvae.onnx.register()
    from skl2onnx import supported_converters
    found["converters"] = sorted(supported_converters())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    converts = importlib.util.find_spec("skl2onnx") is not None
    code = STEPS.replace("NAMES", repr(MODULES)).replace("CONVERTS", repr(converts))
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return json.loads(run.stdout)  # and so nothing else is printed


def test_every_public_module_is_an_attribute_after_import_skvae(found):
    assert found["names"] == [f"skvae.{name}" for name in MODULES]
    assert set(MODULES) <= set(dir(skvae))


def test_import_skvae_loads_only_the_dependencies_and_a_fit_no_more(found):
    known = {"joblib", "numpy", "scipy", "sklearn", "skvae", "threadpoolctl", "torch"}
    packages = {name.partition(".")[0] for name in found["imported"]}
    assert {name for name in packages if name not in sys.stdlib_module_names} <= known
    for step in ("imported", "fitted"):
        assert not {"skvae.onnx", "skvae.safetensors", *HEAVY} & set(found[step])
    # Nor does a public module import the packages of its extra before they are needed.
    assert not {"onnx", "onnxruntime", "onnxscript", "skl2onnx"} & set(found["named"])
    # torch imports a compiler in some of its functions, which takes half a second.
    assert "sympy" not in found["fitted"]


def test_register_of_onnx_works_after_import_skvae_alone(found):
    pytest.importorskip("skl2onnx")
    assert any("VAETransformer" in name for name in found["converters"])


def test_name_that_skvae_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'skvae' has no attribute 'onyx'"):
        _ = skvae.onyx
    assert not hasattr(skvae, "_missing")


def test_star_import_takes_no_name_of_another_package():
    assert not set(HEAVY) & set(skvae.__all__)
