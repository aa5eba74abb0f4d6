"""Examples in docstrings: those that need an extra run where it is installed."""

import importlib.util

import pytest

NEEDED = ("onnx", "onnxruntime", "onnxscript", "skl2onnx")


def pytest_collection_modifyitems(items):
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    for item in items:
        if lacking and item.name.startswith("skvae.onnx."):
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(lacking)}"))
