"""The paper's optimiser and schedule (section 5), and what batches beyond its 128 need."""

from collections.abc import Callable, Iterable, Sequence

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


class LARS(PaperSGD):
    """Layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017, arXiv 1708.03888, algorithm 1), for large batches.

    v = momentum * v - local * lr * (gradient + weight_decay * w); w = w + v, where local is, for each layer (weights
    and biases together), TRUST * |w| / (|gradient| + weight_decay * |w|), and 1 where |w| or |gradient| is 0.

    Args: sum_of: for a layer's name, adds up a scalar over the processes that hold a part of it each, so that a norm is
    that of the whole layer; net: whose layers they are.
    """

    TRUST = 0.1  # at the paper's rate of 0.01 the usual 0.001 moves nothing; ours is ten times 0.01 of the layer's norm

    def __init__(self, net: torch.nn.Module, lr: float, sum_of: Callable[[str, torch.Tensor], torch.Tensor], **more):
        super().__init__(net.parameters(), lr, **more)
        self.layers, self.sum_of = list(net.named_children()), sum_of

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every layer."""
        group = self.param_groups[0]
        decay, lr = group["weight_decay"], group["lr"]
        for name, layer in self.layers:
            weights = list(layer.parameters())
            squares = torch.stack([sum(w.square().sum() for w in weights), sum(w.grad.square().sum() for w in weights)])
            norm, of_gradient = self.sum_of(name, squares).sqrt()
            local = torch.where(
                (norm > 0) & (of_gradient > 0), self.TRUST * norm / (of_gradient + decay * norm), torch.ones_like(norm)
            )
            for weight in weights:
                velocity = self.state[weight].setdefault("velocity", torch.zeros_like(weight))
                velocity.mul_(group["momentum"]).sub_(local * lr * (weight.grad + decay * weight))
                weight.add_(velocity)


PLATEAU = "plateau"
DROPS = 3  # times that the rate is divided by ten on a plateau (section 5: "reduced three times")


def learning_rate(
    base: float, epoch: float, drops: Sequence[int] | str, errors: Sequence[float] = (), patience: int = 5
) -> float:
    """The rate in an epoch (from 0): `base`, divided by ten at each epoch of `drops` that has come; or, for "plateau",
    each time that `patience` validations in a row have brought no lower error than the best before, DROPS times.

    Args: errors: the validation errors so far, in order.
    """
    if drops == PLATEAU:
        return base / 10 ** plateaus(errors, patience)
    return base / 10 ** sum(drop <= epoch for drop in drops)


def plateaus(errors: Sequence[float], patience: int) -> int:
    """How often the error had stopped improving: see `learning_rate`."""
    best, waited, found = float("inf"), 0, 0
    for error in errors:
        best, waited = (error, 0) if error < best else (best, waited + 1)
        if waited == patience and found < DROPS:
            found, waited = found + 1, 0
    return found


WARM_UP = 5  # epochs (Goyal et al. 2017, arXiv 1706.02677, section 2.2)
PAPERS_BATCH = 128


def large_batch_rate(rate: float, batch_size: int, epoch: float) -> float:
    """The paper's rate for a larger batch: in proportion to it, reached from the paper's own over the first WARM_UP
    epochs. Args: epoch: with its fraction."""
    scaled = rate * batch_size / PAPERS_BATCH
    return rate + (scaled - rate) * min(1.0, epoch / WARM_UP)
