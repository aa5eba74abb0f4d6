"""Operations that round a row the same at every index, or that are faster on a CPU."""

import torch
import torch.nn.functional as F


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W' + b, (..., n_out), of rows x (..., n_in)."""
    n_out, n_in = weight.shape
    narrow = max(0, 16 - n_out)
    odd = n_in % 2 if x.dtype == torch.float64 else 0
    if not narrow and not odd:
        return F.linear(x, weight, bias)
    wide = F.pad(weight, (0, odd, 0, narrow))
    shift = None if bias is None else F.pad(bias, (0, narrow))
    return F.linear(F.pad(x, (0, odd)), wide, shift)[..., :n_out]


def each(matrices: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A_b x_sb, (..., S, B, L), with one matrix per row (..., B, L, L) and x (..., S, B|1, L)."""
    n = x.shape[-1]
    if x.ndim == matrices.ndim == 3 and x.shape[1] == 1:  # one product with all rows of all A_b
        of_all = linear(matrices.flatten(0, 1), x.squeeze(1))
        return of_all.unflatten(0, matrices.shape[:2]).movedim(-1, 0)
    more = -n % (64 // x.element_size())
    rows = F.pad(x, (0, more)).movedim(-3, -1)  # (..., B, L', S)
    return (F.pad(matrices, (0, more)) @ rows).movedim(-1, -3)


def tanh(x: torch.Tensor) -> torch.Tensor:
    """tanh x, computed by the logistic function if that is faster."""
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return torch.rsub((x + x).sigmoid_(), -1, alpha=-2)  # 2 s - 1
    return torch.tanh(x)
