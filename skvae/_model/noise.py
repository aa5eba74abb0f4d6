"""The noise of training steps, drawn from generators."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from skvae._model.member import Plan


def draw_noise(
    shape: tuple[int, int],
    wide: int,
    n_more: int,
    plans: Sequence[Plan],
    generators: Sequence[torch.Generator],
) -> torch.Tensor:
    """Draw standard normals (M, *shape, wide + n_more), for components and `n_more` other uses.

    Components that a member lacks, up to `wide`, get 0.
    """
    draws = []
    for plan, g in zip(plans, generators, strict=True):
        own = (*shape, plan.n_components + n_more)
        eps = torch.randn(own, generator=g, dtype=torch.float32, device=g.device)
        if plan.n_components < wide:
            of_z, more = eps.split([plan.n_components, n_more], dim=-1)
            eps = torch.cat([F.pad(of_z, (0, wide - plan.n_components)), more], dim=-1)
        draws.append(eps)
    return torch.stack(draws)


def draw_row_noise(
    n_rows: int, n_noise: int, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Draw standard normals (M, n_rows, n_noise) that belong to rows."""
    if n_noise == 0:
        return torch.empty(len(generators), n_rows, 0, device=generators[0].device)
    shape = n_rows, n_noise
    return torch.stack(
        [torch.randn(shape, generator=g, dtype=torch.float32, device=g.device) for g in generators]
    )
