"""Muon for the matrices, AdamW for the rest, as one small optimizer.

Muon: the momentum of a matrix is replaced by the nearest semi-orthogonal matrix, found with a
quintic Newton-Schulz iteration, so that every direction of the update has the same size.
Source: K. Jordan et al., "Muon: An optimizer for hidden layers", 2024 (coefficients from there).
"""

from __future__ import annotations

import torch
from torch import Tensor

_NS = (3.4445, -4.7750, 2.0315)


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration X <- aX + (bA + cA^2)X with A = XX^T. Args: g: [n, rows, cols]."""
    a, b, c = _NS
    tall = g.shape[-2] > g.shape[-1]
    x = g.bfloat16()
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Groups marked `muon` take orthogonalised momentum, other groups AdamW.

    Matrices of one shape are stacked, so that a step is a handful of batched products.
    """

    def __init__(self, groups: list[dict[str, object]], lr: float = 1.0) -> None:
        super().__init__(
            groups,
            {"lr": lr, "muon": False, "momentum": 0.95, "betas": (0.9, 0.98), "decay": 0.0},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every group."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["muon"]:
                self._muon(group, params)
            else:
                for p in params:
                    self._adam(group, p)

    def _muon(self, group: dict, params: list[Tensor]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        m = group["momentum"]
        for shape, same in by_shape.items():
            updates = []
            for p in same:
                buf = self.state[p].setdefault("m", torch.zeros_like(p))
                buf.lerp_(p.grad, 1 - m)
                updates.append(p.grad.lerp(buf, m))
            ortho = orthogonalise(torch.stack(updates))
            scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
            for p, u in zip(same, ortho, strict=True):
                p.mul_(1 - group["lr"] * group["decay"]).add_(u, alpha=-scale)

    def _adam(self, group: dict, p: Tensor) -> None:
        s = self.state[p]
        if not s:
            s.update(m=torch.zeros_like(p), v=torch.zeros_like(p), n=0)
        s["n"] += 1
        b1, b2 = group["betas"]
        s["m"].lerp_(p.grad, 1 - b1)
        s["v"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
        m_hat = s["m"] / (1 - b1 ** s["n"])
        v_hat = s["v"] / (1 - b2 ** s["n"])
        p.mul_(1 - group["lr"] * group["decay"]).addcdiv_(
            m_hat, v_hat.sqrt().add_(1e-10), value=-group["lr"]
        )
