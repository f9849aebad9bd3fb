"""The paper's update rule and schedule (section 5), by hand."""

import pytest
import torch

from trainer.recipe import PaperSGD, learning_rate


def test_three_steps_by_hand():
    weight = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimiser = PaperSGD([weight], lr=0.1)
    steps = [
        # gradient, lr, velocity, weight:       v = 0.9 v - 0.0005 * lr * w - lr * g;  w = w + v
        (1.0, 0.1, -0.1001, 1.8999),  #         0 - 0.0005 * 0.1 * 2 - 0.1 * 1
        (-2.0, 0.1, 0.109815005, 2.009715005),  # -0.09009 - 0.000094995 + 0.2
        (0.5, 0.01, 0.093823455924975, 2.103538460924975),  # 0.0988335045 - 0.000010048575025 - 0.005
    ]
    for gradient, lr, velocity, value in steps:
        optimiser.param_groups[0]["lr"] = lr
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
        assert optimiser.state[weight]["velocity"].item() == pytest.approx(velocity, rel=1e-12)
        assert weight.item() == pytest.approx(value, rel=1e-12)


def test_torchs_sgd_is_the_same_until_the_rate_changes():
    ours, torchs = (torch.nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64)) for _ in range(2))
    a = PaperSGD([ours], lr=0.1)
    b = torch.optim.SGD([torchs], lr=0.1, momentum=0.9, weight_decay=0.0005)

    def step():
        for parameter, optimiser in ((ours, a), (torchs, b)):
            optimiser.zero_grad()
            (parameter**2).sum().backward()
            optimiser.step()

    for _ in range(4):
        step()
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    for optimiser in (a, b):
        optimiser.param_groups[0]["lr"] = 0.01
    step()
    assert not torch.allclose(ours, torchs, rtol=1e-3)


def test_the_rate_is_divided_by_ten_at_each_drop():
    rates = [learning_rate(0.01, epoch, (25, 51, 79)) for epoch in (0, 24, 25, 50, 51, 78, 79, 89)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert learning_rate(0.01, 89, ()) == 0.01
