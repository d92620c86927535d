"""What a stage minimises: the part of a training step that differs between them.

An objective is the model's head in training: it gets the output of the last norm and the output matrix, so it can
work on logits a block at a time (``minimind.losses``) and never keeps them all. What it returns is a *sum*; the step
divides by the ``size`` of the whole window over all ranks, so the loss does not depend on how a window is cut up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.attention import Segments
from minimind.data.packing import IGNORE, Rows
from minimind.losses import linear_cross_entropy, linear_distillation, linear_token_nll
from minimind.model import MiniMindForCausalLM


class Batch(NamedTuple):
    """Rows as one stream of N tokens. ``extra``: what the objective's ``extra`` said of these rows, on the device."""

    ids: Tensor  # [1, N]
    targets: Tensor  # [1, N]
    segments: Segments
    extra: Any = None


class Objective(Protocol):
    """``unit``: what a loss is per. ``metrics``: names of the sums that come beside the loss, each shown per unit."""

    unit: str
    metrics: tuple[str, ...]

    def size(self, rows: Rows, numbers: np.ndarray) -> int:
        """Units in these rows: what their summed loss is divided by."""
        ...

    def extra(self, rows: Rows, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """What the loss of these rows needs besides their tokens."""
        ...

    def __call__(self, hidden: Tensor, output_weight: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """``(summed loss, [M] sums of the metrics)`` of hidden [1, N, C] and output_weight [V, C]."""
        ...

    def evaluation(self, loss: float, sums: list[float], size: int, num_bytes: int) -> dict:
        """The ``eval`` event of held-out rows. ``num_bytes``: of the text that their targets stand for."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps for a resumed run."""
        ...

    def flops_per_token(self, context: float) -> float:
        """Arithmetic besides the model's own, at a mean ``context`` of tokens."""
        ...


class _PerToken:
    unit = "token"
    metrics: tuple[str, ...] = ()

    def size(self, rows: Rows, numbers: np.ndarray) -> int:
        return int(rows.targets[numbers].sum())

    def extra(self, rows: Rows, numbers: np.ndarray) -> dict[str, np.ndarray]:
        return {}

    def evaluation(self, loss: float, sums: list[float], size: int, num_bytes: int) -> dict:
        return _of_text(loss, size, num_bytes)

    def state(self) -> dict[str, Tensor]:
        return {}

    def flops_per_token(self, context: float) -> float:
        return 0.0


def _of_text(nats: float, size: int, num_bytes: int) -> dict:
    loss = nats / max(1, size)
    return {"eval_loss": loss, "perplexity": math.exp(min(loss, 700.0)) if math.isfinite(loss) else loss,
            "bits_per_byte": nats / math.log(2) / max(1, num_bytes)}


class NextToken(_PerToken):
    """Cross entropy of the next token: ``-log p(x_t | x_<t)``, summed over the tokens that are learnt."""

    def __call__(self, hidden: Tensor, output_weight: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = linear_cross_entropy(hidden.flatten(0, 1), output_weight, batch.targets.flatten())
        return loss, loss.new_zeros(0)


class Distillation(_PerToken):
    """A student learns its teacher's distribution of the next token besides the token itself (Hinton et al.,
    arXiv:1503.02531; reverse: Gu et al., arXiv:2306.08543)::

        loss = alpha * CE(student, data) + (1 - alpha) * T^2 * KL(teacher_T || student_T)
    """

    metrics = ("ce_loss", "kl_loss")

    def __init__(self, teacher: MiniMindForCausalLM, *, alpha: float, temperature: float, reverse: bool,
                 attention: str = "sdpa"):
        """``attention``: the teacher's kernel; the student's may not know its type of numbers or its heads."""
        self.teacher = teacher.eval().requires_grad_(False)
        self.dtype = next(teacher.parameters()).dtype
        self.attention = attention
        self.alpha = alpha
        self.temperature = temperature
        self.reverse = reverse

    def __call__(self, hidden: Tensor, output_weight: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast(hidden.device.type, self.dtype, enabled=self.dtype != torch.float32):
            segments = replace(batch.segments, kernel=self.attention)
            teacher_hidden = self.teacher.hidden(batch.ids, segments=segments).to(self.dtype)
        loss, ce, kl = linear_distillation(
            hidden.flatten(0, 1), output_weight, batch.targets.flatten(), teacher_hidden.flatten(0, 1),
            self.teacher.output_weight, alpha=self.alpha, temperature=self.temperature, reverse=self.reverse)
        return loss, torch.stack([ce, kl])

    def flops_per_token(self, context: float) -> float:
        return self.teacher.config.flops_per_token(context) / 3  # forward alone

    def evaluation(self, loss: float, sums: list[float], size: int, num_bytes: int) -> dict:
        """``eval_loss`` is the student's own cross entropy, so that it compares with other stages'."""
        ce, kl = sums
        return _of_text(ce, size, num_bytes) | {"eval_kl": kl / max(1, size)}


@dataclass(frozen=True)
class Reference:
    """Log-probabilities of the answers under the weights before step 1, ``logps`` [documents] float32: document 2 i is
    the chosen side of pair i, 2 i + 1 the rejected one. ``hashes`` [documents] int64 and ``max_seq_len`` say of what.
    """

    logps: Tensor
    hashes: Tensor
    max_seq_len: int

    def state(self) -> dict[str, Tensor]:
        return {"logps": self.logps, "hashes": self.hashes, "max_seq_len": torch.tensor(self.max_seq_len)}


class Preference:
    """Make the chosen answer of each pair likelier than the rejected one; the loss of a pair, with ``w`` the chosen and
    ``l`` the rejected answer, ``h = log pi(w) - log pi(l) - (log ref(w) - log ref(l))`` and ``n`` tokens of an answer::

        sigmoid   -log sigmoid(beta h)                                      DPO, Rafailov et al., arXiv:2305.18290
        ipo       (h' - 1 / (2 beta))^2, h' of log-probabilities per token  Azar et al., arXiv:2310.12036
        simpo     -log sigmoid(beta (log pi(w) / n_w - log pi(l) / n_l) - gamma)   Meng et al., arXiv:2405.14734
        orpo      -log pi(w) / n_w - beta log sigmoid(log odds(w) - log odds(l))   Hong et al., arXiv:2403.07691

    where ``odds(y) = p / (1 - p)`` with ``p = exp(log pi(y) / n)``. The last two need no reference.
    """

    unit = "pair"
    metrics = ("reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected", "logp_chosen", "logp_rejected")

    def __init__(self, loss_type: str, beta: float, gamma: float, reference: Reference | None):
        assert (reference is not None) == (loss_type in ("sigmoid", "ipo"))
        self.loss_type = loss_type
        self.beta = beta
        self.gamma = gamma
        self.reference = reference

    def size(self, rows: Rows, numbers: np.ndarray) -> int:
        return int((rows.row_starts[numbers + 1] - rows.row_starts[numbers]).sum()) // 2

    def extra(self, rows: Rows, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """``chosen`` and ``rejected`` [K]: places of the sides of each pair among the pieces of the stream;
        ``reference`` [K, 2]."""
        assert rows.documents is not None
        documents = rows.documents[rows.pieces(numbers)] if len(numbers) else np.zeros(0, np.int64)
        sides = []
        for side in (0, 1):  # each by itself: a mixture can take one row, so one pair, several times at once
            places = np.flatnonzero(documents % 2 == side)
            sides.append(places[np.argsort(documents[places], kind="stable")])
        found = dict(zip(("chosen", "rejected"), sides))
        if self.reference is not None:
            found["reference"] = self.reference.logps.numpy()[documents[np.stack(sides, axis=1)]]
        return found

    def __call__(self, hidden: Tensor, output_weight: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        logps, counts = answer_logps(hidden, output_weight, batch)  # [P]
        chosen, rejected = batch.extra["chosen"], batch.extra["rejected"]
        pi_w, pi_l = logps[chosen], logps[rejected]  # [K]
        n_w, n_l = counts[chosen], counts[rejected]
        if self.reference is not None:
            ref_w, ref_l = batch.extra["reference"].double().unbind(1)
            if self.loss_type == "ipo":
                pi_w, pi_l, ref_w, ref_l = pi_w / n_w, pi_l / n_l, ref_w / n_w, ref_l / n_l
            reward_w, reward_l = self.beta * (pi_w - ref_w), self.beta * (pi_l - ref_l)
            margin = reward_w - reward_l
            loss = -F.logsigmoid(margin) if self.loss_type == "sigmoid" else (margin / self.beta - 0.5 / self.beta)**2
        else:
            mean_w, mean_l = pi_w / n_w, pi_l / n_l
            reward_w, reward_l = self.beta * mean_w, self.beta * mean_l
            margin = reward_w - reward_l
            if self.loss_type == "simpo":
                loss = -F.logsigmoid(margin - self.gamma)
            else:
                log_odds = _log_odds(mean_w) - _log_odds(mean_l)
                loss = -mean_w - self.beta * F.logsigmoid(log_odds)
        sums = torch.stack([x.detach().sum() for x in ((margin > 0).double(), margin, reward_w, reward_l,
                                                       logps[chosen], logps[rejected])])
        return loss.sum().float() + 0.0 * logps.sum().float(), sums

    def evaluation(self, loss: float, sums: list[float], size: int, num_bytes: int) -> dict:
        means = {f"eval_{name}": value / max(1, size) for name, value in zip(self.metrics, sums)}
        return {"eval_loss": loss / max(1, size), **means}

    def state(self) -> dict[str, Tensor]:
        return {} if self.reference is None else self.reference.state()

    def flops_per_token(self, context: float) -> float:
        return 0.0


def _log_odds(logp: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of ``logp = log p``, finite for p that is 1 but for rounding."""
    return logp - torch.log(-torch.expm1(logp.clamp(max=-1e-9)))


#: pieces that are added up at once. One matrix for all of them would grow with the square of a micro-batch: 1,280
#: pieces of 51 tokens take 790 ms and 670 MB at once, 15 ms and 34 MB in blocks (one CPU thread, with the gradient).
_PIECES = 64


def answer_logps(hidden: Tensor, output_weight: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """``(log-probability of the learnt tokens of each piece, their number)``, both [P] float64."""
    targets, lengths = batch.targets.flatten(), batch.segments.lengths
    logps = -linear_token_nll(hidden.flatten(0, 1), output_weight, targets).double()  # [N]
    learnt = (targets != IGNORE).double()
    sizes = [sum(lengths[first:first + _PIECES]) for first in range(0, len(lengths), _PIECES)]
    pieces = torch.arange(len(lengths), device=targets.device)
    documents = batch.segments.documents(targets.device)
    found = []
    for piece, document, logp, is_learnt in zip(pieces.split(_PIECES), documents.split(sizes), logps.split(sizes),
                                                learnt.split(sizes)):
        # A product with zeros and ones sums in one order: a GPU's scatter and running sums have other bits each time.
        belongs = (document == piece[:, None]).double()  # [64, n]
        found.append((belongs @ logp, belongs @ is_learnt))
    sums, counts = (torch.cat(parts) for parts in zip(*found))
    return sums, counts.clamp(min=1)
