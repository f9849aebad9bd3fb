"""The paper's optimiser and schedule (section 5)."""

from collections.abc import Iterable, Sequence

import torch


class PaperSGD(torch.optim.Optimizer):
    """v = momentum * v - weight_decay * lr * w - lr * gradient; w = w + v.

    The rate is inside the velocity, so what was gathered at an old rate stays when the rate drops;
    torch.optim.SGD multiplies the whole velocity by the new rate, and equals this only while the rate stands still.
    Weight decay takes every parameter alike: the paper excepts none.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.9, weight_decay: float = 0.0005
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if "velocity" not in self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
            velocities = [self.state[weight]["velocity"] for weight in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, weights, alpha=-group["weight_decay"] * group["lr"])
            torch._foreach_add_(velocities, [weight.grad for weight in weights], alpha=-group["lr"])
            torch._foreach_add_(weights, velocities)
        return loss


def learning_rate(base: float, epoch: int, drops: Sequence[int]) -> float:
    """The rate in an epoch (from 0): `base`, divided by ten at each epoch of `drops` that has come."""
    return base / 10 ** sum(drop <= epoch for drop in drops)
