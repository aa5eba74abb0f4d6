"""What `import skvae` brings: every public module, and nothing that takes long to import."""

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


def printed(code):
    """What code prints as JSON in a fresh process, where nothing else was imported."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_every_public_module_is_an_attribute_after_import_skvae():
    code = "import json, skvae; print(json.dumps([getattr(skvae, n).__name__ for n in {0}]))"
    assert printed(code.format(MODULES)) == [f"skvae.{name}" for name in MODULES]
    assert set(MODULES) <= set(dir(skvae))


def test_import_skvae_leaves_packages_of_extras_alone():
    code = "import json, sys, skvae; dir(skvae); print(json.dumps(sorted(sys.modules)))"
    assert not {"skvae.onnx", "skvae.safetensors", *HEAVY} & set(printed(code))


def test_register_of_onnx_works_after_import_skvae_alone():
    pytest.importorskip("skl2onnx")
    code = """
import json, skvae
skvae.onnx.register()
from skl2onnx import supported_converters
print(json.dumps(sorted(supported_converters())))
"""
    assert any("VAETransformer" in name for name in printed(code))


def test_name_that_skvae_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'skvae' has no attribute 'onyx'"):
        _ = skvae.onyx
    assert not hasattr(skvae, "_missing")


def test_star_import_takes_no_name_of_another_package():
    assert not set(HEAVY) & set(skvae.__all__)
