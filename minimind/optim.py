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
#: root mean square of a Muon update, that of AdamW's, so that both share one learning rate (Liu et al.,
#: arXiv:2502.16982)
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
    """Nearest half-orthogonal matrices of ``update`` [..., rows, columns], approximately: U V^T of its SVD.

    float32 on a CPU (bfloat16 is emulated there), bfloat16 on a GPU.
    """
    x = update.flatten(0, -3)
    if x.device.type != "cpu":
        x = x.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(NS_STEPS):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=NS_B, alpha=NS_C)  # b A + c A^2
        x = torch.baddbmm(x, b, x, beta=NS_A, alpha=1.0)  # a X + (b A + c A^2) X
    return (x.mT if tall else x).to(update.dtype).view(update.shape)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized: for the matrices inside the blocks (Jordan et al., 2024).

    *Why.* Near W the loss is about L + <G, D> for a small change D. Which D lowers it most depends on what "small"
    means. A layer turns x into Wx, so what counts is how far D can move an output: its spectral norm, the largest
    |Dx| / |x|. With G = U S V^T, <G, D> under |D| <= r is least at D = -r U V^T (von Neumann's trace inequality:
    every singular direction contributes at most r times its singular value). So the steepest step keeps the
    directions of G and makes all its singular values equal, where a few large ones would otherwise decide alone.

    *How.* An SVD is slow on a GPU. X <- aX + b(XX^T)X + c(XX^T)^2X leaves U and V and sends each singular value s to
    as + bs^3 + cs^5. With |X| <= 1 at first, five rounds of the coefficients above bring every s that is not tiny
    to about 0.7 to 1.2, which trains as well as exactly 1.

    *How far.* U V^T of an n x m matrix has min(n, m) singular values of 1, so its entries have a root mean square of
    1 / sqrt(max(n, m)). Times 0.2 sqrt(max(n, m)) it is 0.2, as AdamW's updates have: learning rate and decoupled
    decay mean the same for both (Liu et al., arXiv:2502.16982).

    Parameters [n, m] are one matrix, [E, n, m] (a layer's experts) are E of them. Matrices of one shape are worked on
    together. A step for which ``found_inf`` is 1 (see ``Optimizer.step``) changes nothing.
    """

    found_inf: Tensor | None = None

    def __init__(self, params: Iterable[dict] | Iterable[Tensor], lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": MUON_MOMENTUM})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._step_shape(group, parameters)

    def _step_shape(self, group: dict, parameters: list[Tensor]) -> None:
        bad = None if self.found_inf is None else self.found_inf > 0  # stays on the device
        grads, moments = [], []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            moments.append(state["momentum"])
            # the momentum moves towards the gradient; towards itself it stays where it is
            grads.append(parameter.grad if bad is None else torch.where(bad, state["momentum"], parameter.grad))
        torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, moments, group["momentum"])
        updates = orthogonalize(torch.stack(nesterov))
        decay = 1 - group["lr"] * group["weight_decay"]
        if bad is not None:
            updates = updates.masked_fill_(bad, 0.0)
            decay = torch.where(bad, 1.0, decay)
        scale = group["lr"] * MUON_RMS * math.sqrt(max(updates.shape[-2:]))
        torch._foreach_mul_(parameters, decay)
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-scale)


class Optimizer:
    """All optimizers of a model behind one ``step``; decay only on matrices. What is frozen has no part in them.

    The router of a mixture of experts is a small classifier over experts: AdamW has it, as it has the embedding.
    """

    def __init__(self, model: nn.Module, name: str, *, weight_decay: float, beta2: float):
        learnt = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for _, p in learnt if p.ndim >= 2]
        vectors = [p for _, p in learnt if p.ndim < 2]
        blocks: list[Tensor] = []
        if name == "muon":
            blocks = [p for n, p in learnt if p.ndim >= 2 and ".layers." in n and not n.endswith(".gate.weight")]
            inside = {id(p) for p in blocks}
            matrices = [p for p in matrices if id(p) not in inside]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if matrices or vectors:
            self.parts["adamw"] = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, beta2), fused=True)
        if blocks:
            self.parts["muon"] = Muon([{"params": blocks}], lr=0.0, weight_decay=weight_decay)

    def step(self, learning_rate: float, found_inf: Tensor | None = None) -> None:
        """``found_inf``, a float32 scalar on the parameters' device: where it is 1 the gradients are not finite and
        neither a weight nor an optimizer's state changes. The host does not look at it, so nothing waits for a GPU;
        PyTorch's fused AdamW reads it from an attribute of this name, as it does for a ``GradScaler``."""
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.found_inf = found_inf  # type: ignore[attr-defined]
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
