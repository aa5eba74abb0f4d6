"""Examples in docstrings: those that need an extra run where it is installed."""

import importlib.util
import os

import pytest

os.environ.setdefault("MPLBACKEND", "agg")  # no windows, here and in the tests

NEEDED = {
    "skvae.inspection.": ("matplotlib",),
    "skvae.onnx.": ("onnx", "onnxruntime", "onnxscript", "skl2onnx"),
    "skvae.safetensors.": ("safetensors",),
}


def pytest_collection_modifyitems(items):
    for module, names in NEEDED.items():
        lacking = [name for name in names if importlib.util.find_spec(name) is None]
        for item in items:
            if lacking and item.name.startswith(module):
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(lacking)}"))
