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
