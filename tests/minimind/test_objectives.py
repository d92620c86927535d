"""Losses of preferences against their formulas written out: one sequence at a time, whole logits, no packing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.attention import Segments
from minimind.data.packing import IGNORE, Rows, pack_pairs
from minimind.data.sampler import Window
from minimind.distributed import World
from minimind.model import MiniMindForCausalLM
from minimind.objectives import Batch, Distillation, NextToken, Preference, Reference, answer_logps
from minimind.optim import Optimizer
from minimind.presets import ModelConfig
from minimind.stages.distill import kernel_for
from minimind.step import Stepper
from tests.minimind.test_packing import make_cache

SHAPE = ModelConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                    head_dim=16, intermediate_size=48)
PAIRS = 7


def pairs(path: Path, count: int = PAIRS, seed: int = 0) -> tuple[Rows, list[list[tuple[list[int], int]]]]:
    """Random pairs, packed, and as ``[[(ids, prompt tokens) of chosen, of rejected], ...]``."""
    rng = np.random.default_rng(seed)
    plain, documents, masks = [], [], []
    for _ in range(count):
        prompt = rng.integers(3, 61, rng.integers(2, 9)).tolist()
        sides = [(prompt + rng.integers(3, 61, rng.integers(1, 9)).tolist(), len(prompt)) for _ in range(2)]
        plain.append(sides)
        documents += [ids for ids, _ in sides]
        masks += [[0] * n + [1] * (len(ids) - n) for ids, n in sides]
    rows, _ = pack_pairs(make_cache(path, documents, masks), np.arange(2 * count), 20)
    return rows, plain


def model(seed: int = 0) -> MiniMindForCausalLM:
    torch.manual_seed(seed)
    return MiniMindForCausalLM(SHAPE)


def logp(model: MiniMindForCausalLM, ids: list[int], prompt: int) -> tuple[Tensor, int]:
    """Log-probability of everything behind the prompt, and its tokens."""
    logits = model(torch.tensor([ids[:-1]]))[0].double()
    each = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return each[prompt - 1:].sum(), len(ids) - prompt


def written_out(loss_type: str, beta: float, gamma: float, policy: MiniMindForCausalLM, reference: MiniMindForCausalLM,
                plain: list) -> Tensor:
    """Mean over the pairs, by the papers' formulas."""
    found = []
    for chosen, rejected in plain:
        (w, n_w), (r, n_r) = logp(policy, *chosen), logp(policy, *rejected)
        with torch.no_grad():
            ref_w, ref_r = logp(reference, *chosen)[0], logp(reference, *rejected)[0]
        if loss_type == "sigmoid":
            found.append(-torch.log(torch.sigmoid(beta * ((w - ref_w) - (r - ref_r)))))
        elif loss_type == "ipo":
            found.append(((w - ref_w) / n_w - (r - ref_r) / n_r - 1 / (2 * beta)) ** 2)
        elif loss_type == "simpo":
            found.append(-torch.log(torch.sigmoid(beta * (w / n_w - r / n_r) - gamma)))
        else:
            odds = [p / (1 - p) for p in (torch.exp(w / n_w), torch.exp(r / n_r))]
            found.append(-w / n_w - beta * torch.log(torch.sigmoid(torch.log(odds[0] / odds[1]))))
    return torch.stack(found).mean()


def reference_of(model: MiniMindForCausalLM, plain: list) -> Reference:
    with torch.no_grad():
        logps = torch.stack([logp(model, *side)[0] for pair in plain for side in pair]).float()
    return Reference(logps, torch.arange(len(logps)), 20)


def stepper(policy: MiniMindForCausalLM, rows: Rows, objective: Preference, batch_size: int) -> Stepper:
    return Stepper(policy, Optimizer(policy, "adamw", weight_decay=0.0, beta2=0.95), World(), rows, dtype=torch.float32,
                   attention="sdpa", batch_size=batch_size, grad_clip=0.0, objective=objective)


@pytest.mark.parametrize("batch_size", [1, 100])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "simpo", "orpo"])
def test_loss_and_gradients_are_those_of_the_formula(tmp_path: Path, loss_type: str, batch_size: int) -> None:
    """A whole window, in one micro-batch and in many."""
    rows, plain = pairs(tmp_path / "cache")
    policy, base = model(1), model(2)
    beta, gamma = (2.0, 0.5) if loss_type == "simpo" else (0.3, 0.0)
    kept = reference_of(base, plain) if loss_type in ("sigmoid", "ipo") else None
    ours = stepper(policy, rows, Preference(loss_type, beta, gamma, kept), batch_size)
    window = Window(1, 0, 0, np.arange(len(rows)))
    totals = ours.accumulate(window)
    got = {name: p.grad.clone() for name, p in policy.named_parameters()}
    policy.zero_grad()
    expected = written_out(loss_type, beta, gamma, policy, base, plain)
    expected.backward()
    assert float(totals[0]) / PAIRS == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, atol=2e-6, rtol=2e-4, msg=name)


@pytest.mark.parametrize("loss_type", ["sigmoid", "simpo"])
def test_a_row_may_come_twice_in_a_micro_batch(tmp_path: Path, loss_type: str) -> None:
    """A mixture takes the rows of a small source several times: every pair is still compared with itself."""
    rows, plain = pairs(tmp_path / "cache")
    policy, base = model(1), model(2)
    kept = reference_of(base, plain) if loss_type == "sigmoid" else None
    ours = stepper(policy, rows, Preference(loss_type, 0.3, 0.0, kept), 100)
    numbers = np.array([0, 1, 0, 0])
    totals = ours.accumulate(Window(1, 0, 0, numbers))
    got = {name: p.grad.clone() for name, p in policy.named_parameters()}
    policy.zero_grad()
    documents = np.concatenate([rows.documents[rows.pieces(np.array([n]))] for n in numbers])
    taken = [plain[document // 2] for document in documents if document % 2 == 0]
    expected = written_out(loss_type, 0.3, 0.0, policy, base, taken)
    expected.backward()
    assert float(totals[0]) / len(taken) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, atol=2e-6, rtol=2e-4, msg=name)


def test_answers_are_added_up_piece_by_piece() -> None:
    """More pieces than are added up at once, of all lengths, some without an answer."""
    rng = np.random.default_rng(1)
    lengths = tuple(rng.integers(1, 9, 150).tolist())
    hidden, weight = torch.randn(1, sum(lengths), 8), torch.randn(61, 8)
    targets = torch.where(torch.rand(1, sum(lengths)) < 0.4, IGNORE, torch.randint(0, 61, (1, sum(lengths))))
    hidden.requires_grad_()
    logps, counts = answer_logps(hidden, weight, Batch(targets, targets, Segments(lengths)))
    each = F.cross_entropy(hidden[0] @ weight.T, targets[0], reduction="none")  # 0 where nothing is learnt
    expected = torch.stack([-part.double().sum() for part in each.split(lengths)])
    torch.testing.assert_close(logps, expected, rtol=1e-6, atol=1e-6)
    assert counts.tolist() == [max(1, int((part != IGNORE).sum())) for part in targets[0].split(lengths)]
    share = torch.rand(150, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((share * x).sum(), hidden)[0] for x in (logps, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_metrics_of_preferences(tmp_path: Path) -> None:
    rows, plain = pairs(tmp_path / "cache")
    policy, base = model(1), model(2)
    ours = stepper(policy, rows, Preference("sigmoid", 0.3, 0.0, reference_of(base, plain)), 2)
    window = Window(1, 0, 0, np.arange(len(rows)))
    totals = ours.accumulate(window)
    found = dict(zip(Preference.metrics, (totals[1:] / PAIRS).tolist()))
    with torch.no_grad():
        sides = [[(float(logp(policy, *side)[0]), float(logp(base, *side)[0])) for side in pair] for pair in plain]
    rewards = [[0.3 * (own - ref) for own, ref in pair] for pair in sides]
    assert found["reward_chosen"] == pytest.approx(np.mean([w for w, _ in rewards]), abs=1e-4)
    assert found["reward_rejected"] == pytest.approx(np.mean([r for _, r in rewards]), abs=1e-4)
    assert found["reward_margin"] == pytest.approx(np.mean([w - r for w, r in rewards]), abs=1e-4)
    assert found["reward_accuracy"] == pytest.approx(np.mean([w > r for w, r in rewards]))
    assert found["logp_chosen"] == pytest.approx(np.mean([pair[0][0] for pair in sides]), abs=1e-3)
    assert found["logp_rejected"] == pytest.approx(np.mean([pair[1][0] for pair in sides]), abs=1e-3)


def test_a_rank_without_pairs_has_a_gradient_of_zero(tmp_path: Path) -> None:
    """The last window of an epoch can leave a rank without rows; DDP waits for all of its gradients all the same."""
    rows, plain = pairs(tmp_path / "cache")
    policy = model(1)
    ours = stepper(policy, rows, Preference("sigmoid", 0.1, 0.0, reference_of(policy, plain)), 2)
    said = ours.losses(policy, ours.batch(np.zeros(0, dtype=np.int64)))
    said.loss.backward()
    assert said.loss.item() == 0.0 and said.sums.tolist() == [0.0] * len(Preference.metrics)
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())


def test_the_student_moves_towards_the_teacher_alone(tmp_path: Path) -> None:
    """``alpha`` 0: the loss is T^2 KL, zero for a student that is its teacher, and no gradient reaches the teacher."""
    rows, _ = pairs(tmp_path / "cache")
    student, teacher = model(1), model(2)
    objective = Distillation(teacher, alpha=0.0, temperature=2.0, reverse=False)
    ours = stepper(student, rows, objective, 100)
    window = Window(1, 0, 0, np.arange(len(rows)))
    assert float(ours.accumulate(window)[0]) > 0
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    same = model(2)
    zero = stepper(same, rows, Distillation(teacher, alpha=0.0, temperature=2.0, reverse=True), 100)
    totals = zero.accumulate(window)
    assert float(totals[0]) == pytest.approx(0.0, abs=1e-3)
    assert max(float(p.grad.abs().max()) for p in same.parameters()) < 1e-5


def test_a_teacher_of_low_precision_teaches_nearly_the_same(tmp_path: Path) -> None:
    rows, _ = pairs(tmp_path / "cache")
    window = Window(1, 0, 0, np.arange(len(rows)))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        student, teacher = model(1), model(2).to(dtype)
        ours = stepper(student, rows, Distillation(teacher, alpha=0.0, temperature=2.0, reverse=False), 100)
        loss = float(ours.accumulate(window)[0])
        assert {p.dtype for p in teacher.parameters()} == {dtype}
        found.append((loss, torch.cat([p.grad.flatten() for p in student.parameters()])))
    (exact, gradient), (rounded, other) = found
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)
    assert F.cosine_similarity(gradient, other, dim=0) > 0.999


def test_a_teacher_has_an_attention_kernel_of_its_own(tmp_path: Path) -> None:
    """A GPU's kernels for streams know neither float32 nor every size of heads."""
    gpu = torch.device("cuda")
    for kernel in ("varlen", "flash_attn"):
        assert kernel_for(kernel, gpu, torch.float32, 64) == "sdpa" == kernel_for(kernel, gpu, torch.bfloat16, 12)
    assert kernel_for("flex", gpu, torch.float32, 64) == "flex"
    rows, _ = pairs(tmp_path / "cache")
    student = model(1)
    ours = stepper(student, rows, Distillation(model(2), alpha=0.5, temperature=2.0, reverse=False), 100)
    batch = ours.batch(np.arange(2))
    hidden = student.hidden(batch.ids, segments=batch.segments)
    strange = batch._replace(segments=Segments(batch.segments.lengths, "varlen"))
    one, other = (ours.objective(hidden, student.output_weight, b)[0] for b in (batch, strange))
    assert one.item() == other.item()


def test_alpha_one_is_fine_tuning(tmp_path: Path) -> None:
    rows, _ = pairs(tmp_path / "cache")
    one, other = model(1), model(1)
    window = Window(1, 0, 0, np.arange(len(rows)))
    distilled = stepper(one, rows, Distillation(model(2), alpha=1.0, temperature=2.0, reverse=False), 100)
    plain = stepper(other, rows, NextToken(), 100)
    torch.testing.assert_close(distilled.accumulate(window)[0], plain.accumulate(window)[0], rtol=1e-5, atol=0)
    for a, b in zip(one.parameters(), other.parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_pairs_are_packed_whole(tmp_path: Path) -> None:
    rows, plain = pairs(tmp_path / "cache", 40, seed=3)
    seen = []
    for number in range(len(rows)):
        places = rows.pieces(np.array([number]))
        documents = sorted(rows.documents[places].tolist())
        assert documents[0::2] == [d - 1 for d in documents[1::2]] and all(d % 2 == 0 for d in documents[0::2])
        assert rows.tokens[number] <= 40
        seen += documents
    assert sorted(seen) == list(range(80))
    assert len(rows) <= 1.2 * sum(len(ids) for pair in plain for ids, _ in pair) / 40 + 1


def test_long_sides_lose_their_end_and_long_prompts_their_pair(tmp_path: Path) -> None:
    """A window of 6: an answer that is too long is cut; a prompt of 6 or more leaves nothing to compare."""
    prompts, answers = [3, 6, 2, 9], [(5, 1), (2, 3), (1, 2), (1, 1)]
    documents = [list(range(3, 3 + p + n)) for p, pair in zip(prompts, answers) for n in pair]
    masks = [[0] * p + [1] * n for p, pair in zip(prompts, answers) for n in pair]
    rows, counts = pack_pairs(make_cache(tmp_path / "cache", documents, masks), np.arange(8), 6)
    assert counts == {"cut": 1, "cut_tokens": 2, "dropped": 2, "dropped_tokens": 8 + 9 + 10 + 10, "first_dropped": 2}
    assert sorted(rows.documents.tolist()) == [0, 1, 4, 5]
    tokens, targets, lengths = rows.read(np.arange(len(rows)))
    assert max(lengths) == 6 and int((targets != -100).sum()) == int(rows.targets.sum()) == 3 + 1 + 1 + 2
    assert F.one_hot(torch.tensor(lengths)).sum(0).tolist()[3:7] == [1, 2, 0, 1]
    assert len(tokens) == 6 + 4 + 3 + 4


def test_sides_that_a_cut_makes_equal_are_left_out(tmp_path: Path) -> None:
    """In a window of 6 the first pair differs only behind it; in the second one side ends before."""
    same = [3, 4, 5, 6, 7, 8]
    documents = [[*same, 9], [*same, 10, 11], [*same, 9], same, [*same[:5], 9, 9], [*same[:5], 10, 10]]
    masks = [[0, 0] + [1] * (len(ids) - 2) for ids in documents]
    rows, counts = pack_pairs(make_cache(tmp_path / "cache", documents, masks), np.arange(6), 6)
    assert sorted(rows.documents.tolist()) == [4, 5]
    assert counts == {"cut": 2, "cut_tokens": 2, "dropped": 2, "dropped_tokens": 7 + 8 + 7 + 6, "first_dropped": 1}
