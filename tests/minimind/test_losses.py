"""The loss without logits against plain cross entropy: values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from minimind import losses


@pytest.mark.parametrize("chunk_logits", [1, 7 * 31, 1 << 20])
@pytest.mark.parametrize("ignored", [0.0, 0.5, 1.0])
def test_value_and_gradients(monkeypatch: pytest.MonkeyPatch, chunk_logits: int, ignored: float) -> None:
    monkeypatch.setitem(losses.CHUNK_LOGITS, "cpu", chunk_logits)
    torch.manual_seed(0)
    x = torch.randn(23, 8, requires_grad=True)
    weight = torch.randn(31, 8, requires_grad=True)
    targets = torch.randint(0, 31, (23,))
    targets[torch.rand(23) < ignored] = losses.IGNORE
    ours = losses.linear_cross_entropy(x, weight, targets) * 0.3
    plain = F.cross_entropy(x @ weight.T, targets, ignore_index=losses.IGNORE, reduction="sum") * 0.3
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    for one, other in zip(torch.autograd.grad(ours, (x, weight)), torch.autograd.grad(plain, (x, weight))):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(losses.linear_cross_entropy(x, weight, targets) * 0.3, plain.detach(),
                                   atol=1e-5, rtol=1e-5)


def test_nothing_to_learn_is_zero_not_nan() -> None:
    x = torch.randn(1, 8, requires_grad=True)
    weight = torch.randn(5, 8, requires_grad=True)
    loss = losses.linear_cross_entropy(x, weight, torch.tensor([losses.IGNORE]))
    loss.backward()
    assert loss.item() == 0 and float(x.grad.abs().sum()) == 0 and float(weight.grad.abs().sum()) == 0


def test_autocast_keeps_the_loss_in_float32() -> None:
    x = torch.randn(9, 8, requires_grad=True)
    weight = torch.randn(5, 8, requires_grad=True)
    targets = torch.randint(0, 5, (9,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses.linear_cross_entropy(x, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(x @ weight.T, targets, reduction="sum"), rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("chunk_logits", [1, 7 * 31, 1 << 20])
@pytest.mark.parametrize("ignored", [0.0, 0.5, 1.0])
def test_the_loss_of_each_token(monkeypatch: pytest.MonkeyPatch, chunk_logits: int, ignored: float) -> None:
    monkeypatch.setitem(losses.CHUNK_LOGITS, "cpu", chunk_logits)
    torch.manual_seed(0)
    x, weight = torch.randn(23, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    share = torch.rand(23)  # every token counts another amount
    targets = torch.randint(0, 31, (23,))
    targets[torch.rand(23) < ignored] = losses.IGNORE
    ours = losses.linear_token_nll(x, weight, targets)
    plain = F.cross_entropy(x @ weight.T, targets, ignore_index=losses.IGNORE, reduction="none")
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    for one, other in zip(torch.autograd.grad((ours * share).sum(), (x, weight)),
                          torch.autograd.grad((plain * share).sum(), (x, weight))):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("alpha", "temperature", "teacher_rows"), [(0.5, 1.5, 31), (0.0, 1.0, 31), (1.0, 3.0, 31),
                                                                     (0.3, 2.0, 29), (0.3, 2.0, 40)])
def test_distillation_is_pytorchs_kl_div_written_out(monkeypatch: pytest.MonkeyPatch, reverse: bool, alpha: float,
                                                     temperature: float, teacher_rows: int) -> None:
    """``F.kl_div`` on whole logits over the rows of the vocabulary that both models have, tokens with a target only."""
    monkeypatch.setitem(losses.CHUNK_LOGITS, "cpu", 5 * 31)
    torch.manual_seed(0)
    x, weight = torch.randn(23, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    teacher_x, teacher_weight = torch.randn(23, 12), torch.randn(teacher_rows, 12)
    targets = torch.randint(0, 29, (23,))
    targets[torch.rand(23) < 0.4] = losses.IGNORE
    ours = losses.linear_distillation(x, weight, targets, teacher_x, teacher_weight, alpha=alpha,
                                      temperature=temperature, reverse=reverse)
    real, shared = targets != losses.IGNORE, min(31, teacher_rows)
    student = F.log_softmax((x @ weight.T)[real][:, :shared] / temperature, dim=-1)
    teacher = F.log_softmax((teacher_x @ teacher_weight.T)[real][:, :shared] / temperature, dim=-1)
    given, wanted = (teacher, student) if reverse else (student, teacher)
    kl = F.kl_div(given, wanted, log_target=True, reduction="sum") * temperature**2
    ce = F.cross_entropy(x @ weight.T, targets, ignore_index=losses.IGNORE, reduction="sum")
    plain = alpha * ce + (1 - alpha) * kl
    for one, other in zip(ours, (plain, ce, kl)):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    for one, other in zip(torch.autograd.grad(ours[0] * 0.3, (x, weight)),
                          torch.autograd.grad(plain * 0.3, (x, weight))):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_float32_teacher_of_a_bfloat16_student_is_not_rounded() -> None:
    torch.manual_seed(0)
    x, weight, teacher_x, teacher_weight = (torch.randn(*shape) for shape in ((40, 8), (31, 8), (40, 12), (31, 12)))
    with torch.autocast("cpu", torch.bfloat16):
        kl = losses.linear_distillation(x, weight, torch.zeros(40, dtype=torch.long), teacher_x, teacher_weight,
                                        alpha=0.0, temperature=1.0, reverse=False)[2]
    student = F.log_softmax((x.bfloat16() @ weight.bfloat16().T).float(), dim=-1)
    teacher = F.log_softmax(teacher_x @ teacher_weight.T, dim=-1)
    assert float(kl) == pytest.approx(float(F.kl_div(student, teacher, log_target=True, reduction="sum")), rel=1e-6)


def test_distillation_where_nothing_is_learnt_is_zero() -> None:
    x, weight = torch.randn(2, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    loss, ce, kl = losses.linear_distillation(x, weight, torch.full((2,), losses.IGNORE), torch.randn(2, 3),
                                              torch.randn(5, 3), alpha=0.5, temperature=2.0, reverse=False)
    loss.backward()
    assert loss.item() == ce.item() == kl.item() == 0 and float(x.grad.abs().sum()) == 0
