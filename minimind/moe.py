"""Mixture of experts: in place of one SwiGLU a layer has E, and a router chooses k of them for every token.

Shazeer et al., arXiv:1701.06538; Switch Transformer (Fedus et al., arXiv:2101.03961) for k = 1 and the balance loss.
Tokens are sorted by expert, so that all experts' products are one grouped matrix product each (``grouped_linear``).

Shapes: N tokens, C hidden_size, I intermediate_size, E experts, k experts per token, M = N * k assignments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.errors import CheckpointError
from minimind.mlp import MLP
from minimind.presets import ModelConfig

#: public from torch 2.10 on
grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm


class Routing(NamedTuple):
    """What the router of one layer did in one forward pass."""

    balance_loss: Tensor  #: scalar with gradient, coefficient included; 0 outside of training
    load: Tensor  #: [E] float32, assignments of each expert; they sum to M


def choose_experts(probs: Tensor, k: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """The k likeliest experts of each token: weights [N, k] in float32, and which [N, k], from ``probs`` [N, E].

    Normalized weights are w_i = p_i / s with s the sum over a token's chosen experts. With g_i = dL / dw_i their
    derivative is dL / dp_i = (g_i - sum_j w_j g_j) / s: the chosen experts of a token are compared with each other.
    A single one has nothing to be compared with: w = p / p = 1, the derivative is 0 whatever the loss says, and the
    router never learns. The Switch Transformer multiplies by p itself (its equation 2), for which dL / dp = g. For
    k = 1 we take that derivative and keep the value 1 (straight-through: the value of one function, the derivative
    of another), so that weights made with normalization give the logits they were made for, and still learn.
    """
    weights, chosen = probs.topk(k, dim=-1)
    if normalize and k == 1:
        weights = 1.0 + (weights - weights.detach())  # exactly 1
    elif normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, chosen


def balance_loss(probs: Tensor, load: Tensor) -> Tensor:
    """E * sum_e f_e P_e, with f_e = ``load`` [E] / N and P_e the mean of ``probs`` [N, E] (Switch, equation 4).

    At its least where every expert serves equally many tokens: it is k there. (Hugging Face's function for all
    layers together is the same where there is one layer.)
    """
    return probs.shape[1] * (load / probs.shape[0] * probs.mean(0)).sum()


class MoE(nn.Module):
    """Router, routed experts and shared ones. Stands where a dense layer has its SwiGLU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.aux_loss_coef = config.router_aux_loss_coef
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)
        self.shared_experts = nn.ModuleList(MLP(config) for _ in range(config.num_shared_experts))

    def reset_parameters(self, std: float) -> None:
        """Every matrix N(0, std)."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=std)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x [..., C] -> the same shape, and what the router did."""
        tokens = x.flatten(0, -2)
        # In float32 under autocast too: among bfloat16 numbers near 1/E, many would be equal.
        probs = torch.softmax(self.gate(tokens), dim=-1, dtype=torch.float32)
        weights, chosen = choose_experts(probs, self.num_experts_per_tok, self.norm_topk_prob)
        # bincount would wait for a GPU
        load = (chosen.flatten()[:, None] == torch.arange(probs.shape[1], device=x.device)).sum(0)
        y = self.experts(tokens, weights, chosen, load)
        for expert in self.shared_experts:
            y = y + expert(tokens)
        balance = (self.aux_loss_coef * balance_loss(probs, load) if self.training else probs.new_zeros(()))
        return y.view(x.shape), Routing(balance, load.float())


class Experts(nn.Module):
    """The routed experts' matrices, those of one name stacked.

    Gates and ups stay apart: as one stack, their gradients would have to be copied together.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        e, c, i = config.num_experts, config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Parameter(torch.empty(e, i, c))
        self.up_proj = nn.Parameter(torch.empty(e, i, c))
        self.down_proj = nn.Parameter(torch.empty(e, c, i))

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor, load: Tensor) -> Tensor:
        """sum_i w_i expert_i(x): x [N, C], weights and chosen [N, k], load [E] -> [N, C]."""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        # autocast knows no grouped_mm
        gate_proj, up_proj, down_proj = (w.to(dtype) for w in (self.gate_proj, self.up_proj, self.down_proj))
        n, k = chosen.shape
        order = chosen.flatten().argsort(stable=True)  # assignments by expert, and by token within one
        place = torch.empty_like(order)
        place[order] = torch.arange(n * k, device=x.device)  # where each assignment went
        ends = load.cumsum(0).int()

        rows = gather(x.to(dtype), order // k, place.view(n, k))
        gated = F.silu(grouped_linear(rows, gate_proj, ends)) * grouped_linear(rows, up_proj, ends)
        out = grouped_linear(gated, down_proj, ends)
        out = gather(out, place, order[:, None]).view(n, k, -1)
        return (out * weights.to(dtype)[..., None]).sum(1)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        back, = ctx.saved_tensors
        if back.shape[1] == 1:
            return grad.index_select(0, back[:, 0]), None, None
        return grad[back].sum(1), None, None


def gather(x: Tensor, index: Tensor, back: Tensor) -> Tensor:
    """Rows ``index`` [M] of x. ``back`` [rows, M / rows] says where each row went, so that the gradient is gathered
    too: autograd's own would be scattered, which on a GPU is slow and sums in an order that changes.
    """
    return _Gather.apply(x, index, back)


# Grouped products. Operators of our own, because torch.compile knows grouped_mm in bfloat16 only.

@torch.library.custom_op("minimind::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x [M, K] @ weight[e]^T [K, O] for the rows of each expert e: those from ``ends[e - 1]`` to ``ends[e]`` - 1.

    ``weight`` [E, O, K], ``ends`` [E] int32; [M, O].
    """
    if can_group(x, weight):
        return grouped_mm(x.contiguous(), weight.mT, offs=ends)
    return looped_linear(x, weight, ends)


@torch.library.custom_op("minimind::grouped_outer", mutates_args=())
def grouped_outer(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """grad^T [O, M] @ x [M, K] over the rows of each expert: [E, O, K], the gradient of ``grouped_linear``'s weight."""
    if can_group(x, grad):
        return grouped_mm(grad.contiguous().mT, x.contiguous(), offs=ends)
    return looped_outer(grad, x, ends)


def can_group(*operands: Tensor) -> bool:
    """Whether torch's grouped product takes these: one type that it knows, and rows of whole 16 bytes.

    On CUDA its kernel is for bfloat16; on a CPU it is a loop in C++, for half types and float32. There (one thread,
    forward + backward of 4096 tokens, 4 experts, k = 1) the whole layer takes 1.474 s with it, 1.476 s with
    ``looped_linear``, and one dense SwiGLU 1.425 s at C = 768, I = 2432; at C = 256, I = 832 0.178, 0.184, 0.174 s.
    """
    known = ((torch.bfloat16,) if operands[0].device.type == "cuda" else
             (torch.float32, torch.bfloat16, torch.float16))
    return all(t.dtype in known and all(n * t.element_size() % 16 == 0 for n in t.shape[-2 if t.ndim == 3 else -1:])
               for t in operands)


def looped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """``grouped_linear`` as it reads; on a GPU it waits for ``ends``."""
    out = x.new_empty(x.shape[0], weight.shape[1])
    start = 0
    for e, end in enumerate(ends.tolist()):
        out[start:end] = x[start:end] @ weight[e].T
        start = end
    return out


def looped_outer(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """``grouped_outer`` as it reads."""
    out = x.new_empty(len(ends), grad.shape[1], x.shape[1])
    start = 0
    for e, end in enumerate(ends.tolist()):
        out[e] = grad[start:end].T @ x[start:end]
        start = end
    return out


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_outer.register_fake
def _(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], grad.shape[1], x.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, ends = ctx.saved_tensors
    needs_x, needs_weight, _ = ctx.needs_input_grad
    return (grouped_linear(grad, weight.mT, ends) if needs_x else None,
            grouped_outer(grad, x, ends) if needs_weight else None, None)


grouped_linear.register_autograd(_grouped_linear_backward, setup_context=_save)


# Names on disk: upstream MiniMind and older Hugging Face files have three matrices for every expert.

_STACKED = re.compile(r"(.*\bexperts)\.(gate_up|gate|up|down)_proj")  # gate_up: as Hugging Face has them in memory
_SINGLE = re.compile(r"(.*\bexperts)\.(\d+)\.(gate|up|down)_proj\.weight")


def split_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the stacks ``...experts.{gate,up,down}_proj`` as the matrices of every expert (views):
    ``...experts.{e}.{gate,up,down}_proj.weight``. Other tensors pass.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _STACKED.fullmatch(name)
        if match is None:
            found[name] = tensor
            continue
        prefix, part = match.groups()
        for e, matrix in enumerate(tensor):
            matrices = zip(("gate", "up"), matrix.chunk(2)) if part == "gate_up" else ((part, matrix),)
            found |= {f"{prefix}.{e}.{p}_proj.weight": m for p, m in matrices}
    return found


def stack_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``split_experts``. Raises ``CheckpointError`` where a matrix is missing or of another shape."""
    found: dict[str, Tensor] = {}
    stacks: dict[str, dict[tuple[str, int], Tensor]] = {}
    for name, tensor in tensors.items():
        match = _SINGLE.fullmatch(name)
        if match is None:
            found[name] = tensor
        else:
            prefix, e, part = match.groups()
            stacks.setdefault(prefix, {})[part, int(e)] = tensor
    for prefix, matrices in stacks.items():
        count = 1 + max(e for _, e in matrices)
        for part in ("gate", "up", "down"):
            found[f"{prefix}.{part}_proj"] = _stack(prefix, part, [matrices.get((part, e)) for e in range(count)])
    return found


def _stack(prefix: str, part: str, matrices: list[Tensor | None]) -> Tensor:
    given = [m for m in matrices if m is not None]
    for e, matrix in enumerate(matrices):
        name = f"{prefix}.{e}.{part}_proj.weight"
        if matrix is None:
            raise CheckpointError(f"The tensor {name} is missing, while others of its layer's experts are there.",
                                  hint="The file is incomplete: copy or download it again.")
        if matrix.shape != given[0].shape:
            raise CheckpointError(f"The tensor {name} has the shape {list(matrix.shape)}, and that of another expert "
                                  f"has {list(given[0].shape)}.", hint="The experts of a layer have one shape.")
    return torch.stack(given)
