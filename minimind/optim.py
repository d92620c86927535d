"""AdamW, Muon, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MUON_MOMENTUM = 0.95
#: coefficients of the quintic Newton-Schulz iteration (Jordan et al., https://kellerjordan.github.io/posts/muon)
NS_A, NS_B, NS_C = 3.4445, -4.7750, 2.0315
NS_STEPS = 5
#: brings a Muon update to the size of AdamW's, so that both share one learning rate (Liu et al., arXiv:2502.16982)
MUON_RMS = 0.2


def learning_rate_at(step: int, total_steps: int, peak: float, warmup_steps: int, min_fraction: float) -> float:
    """Linear warm-up to ``peak``, then half a cosine down to ``min_fraction * peak`` at the last step.

    ``step`` counts from 1. (Loshchilov & Hutter, arXiv:1608.03983.)
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (min_fraction + (1 - min_fraction) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def orthogonalize(update: Tensor) -> Tensor:
    """Nearest half-orthogonal matrices of ``update`` [n, rows, columns], approximately: U V^T of its SVD.

    float32 on a CPU (bfloat16 is emulated there), bfloat16 on a GPU.
    """
    x = update if update.device.type == "cpu" else update.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(NS_STEPS):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=NS_B, alpha=NS_C)  # b A + c A^2
        x = torch.baddbmm(x, b, x, beta=NS_A, alpha=1.0)  # a X + (b A + c A^2) X
    return (x.mT if tall else x).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized: for the matrices inside the blocks. Matrices of one shape are worked on together."""

    def __init__(self, params: Iterable[dict] | Iterable[Tensor], lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": MUON_MOMENTUM})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                self._step_shape(group, shape, parameters)

    def _step_shape(self, group: dict, shape: torch.Size, parameters: list[Tensor]) -> None:
        grads = [p.grad for p in parameters]
        moments = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            moments.append(state["momentum"])
        torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, moments, group["momentum"])
        updates = orthogonalize(torch.stack(nesterov))
        scale = group["lr"] * MUON_RMS * math.sqrt(max(shape))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-scale)


class Optimizer:
    """All optimizers of a model behind one ``step``; decay only on matrices."""

    def __init__(self, model: nn.Module, name: str, *, weight_decay: float, beta2: float):
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        blocks: list[Tensor] = []
        if name == "muon":
            blocks = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
            inside = {id(p) for p in blocks}
            matrices = [p for p in matrices if id(p) not in inside]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.parts: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(groups, lr=0.0, betas=(0.9, beta2), fused=True)}
        if blocks:
            self.parts["muon"] = Muon([{"params": blocks}], lr=0.0, weight_decay=weight_decay)

    def step(self, learning_rate: float, scaler: torch.amp.GradScaler | None = None) -> None:
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = learning_rate
            if scaler is not None:
                scaler.step(part)
            else:
                part.step()

    def zero_grad(self) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)

    def forget(self) -> None:
        """Back to the state before the first step."""
        for part in self.parts.values():
            part.state.clear()

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        """Moments from ``state``; the decay and betas of this run's configuration stay."""
        for name, part in self.parts.items():
            kept = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in part.param_groups]
            part.load_state_dict(state[name])
            for group, values in zip(part.param_groups, kept, strict=True):
                group.update(values)
