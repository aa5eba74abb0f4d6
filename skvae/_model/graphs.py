"""Training steps as CUDA graphs."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from skvae._model.rows import Rows

# Its arguments are rows, their index (M, B), their weights (M, B) or None, noise (M, S, B, .) of
# draws and (M, B, .) of rows, beta (M, 1), and the coefficients of Adam.
Step = Callable[..., None]


# torch captures one graph at a time.
_capturing = threading.Lock()


def capture(step: Step, changes: Sequence[torch.Tensor]) -> Step:
    """Record `step`, which changes these tensors, as CUDA graphs: one launch, not a hundred.

    There is one graph for whole batches and one for the smaller last batch of an epoch. If last
    batches have several sizes, only the first size has a graph.
    """
    graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[torch.Tensor | None]]] = {}
    device = changes[0].device

    def record(rows: Rows, inputs: Sequence[torch.Tensor | None]) -> torch.cuda.CUDAGraph:
        before = [tensor.clone() for tensor in changes]
        # Libraries must choose their kernels and their memory before the capture.
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                step(rows, *inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # The stream belongs to this device, and other threads may use the device meanwhile.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            step(rows, *inputs)
        for tensor, value in zip(changes, before, strict=True):
            tensor.copy_(value)
        return graph

    def replay(rows: Rows, index: torch.Tensor, *others: torch.Tensor | None) -> None:
        inputs = index, *others
        key = rows.data.data_ptr(), index.shape
        if key not in graphs:
            if len(graphs) == 2:
                return step(rows, *inputs)
            own = [None if tensor is None else tensor.clone() for tensor in inputs]
            with _capturing:
                graphs[key] = record(rows, own), own
        graph, own = graphs[key]
        for tensor, value in zip(own, inputs, strict=True):
            if tensor is not None and value is not None:
                tensor.copy_(value)
        graph.replay()

    return replay
