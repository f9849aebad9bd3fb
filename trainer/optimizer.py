"""The paper's optimizer (section 5), and LARS for batches beyond its 128."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.alexnet import AlexNet


class PaperSGD(torch.optim.Optimizer):
    """v = momentum * v - weight_decay * lr * w - lr * gradient; w = w + v.

    The learning rate is inside the velocity, so what was accumulated at an old lr stays when the lr drops;
    torch.optim.SGD multiplies all of the velocity by the new lr, and equals this only while the lr does not change.
    Weight decay applies to every parameter: the paper excepts none. A group's lr is to be set in multiples of its
    "lr_scale".

    Args: params: parameters, or groups of them as torch.optim takes them.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "lr_scale": 1.0})
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["velocity"] = torch.zeros_like(weight)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            velocities = [self.state[weight]["velocity"] for weight in weights]
            if weights:
                # SGD's fused kernel, which reads and writes each number once: v = momentum * v + (1 - dampening) *
                # (g + weight_decay * w); w = w - lr * v. With these two constants that is the update above
                torch._fused_sgd_(
                    weights,
                    [weight.grad for weight in weights],
                    velocities,
                    lr=-1.0,
                    dampening=1.0 + group["lr"],
                    momentum=group["momentum"],
                    weight_decay=group["weight_decay"],
                    nesterov=False,
                    maximize=False,
                    is_first_step=False,
                )
        return loss


class LARS(PaperSGD):
    """Layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017, arXiv 1708.03888, algorithm 1), for large batches.

    v = momentum * v - local * lr * (gradient + weight_decay * w); w = w + v, where local is, for each parameter,
    TRUST * |w| / (|gradient| + weight_decay * |w|), and 1 where |w| or |gradient| is 0. A layer's weights and biases
    have a local lr each, because the ratio of the two norms differs widely between them, as the authors found.

    Args: params: as in PaperSGD; all_reduce: turns the sums of squares of this process's shard of a parameter, a
    tensor, into those of the unsharded parameter.
    """

    TRUST = 0.02

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        all_reduce: Callable[[nn.Parameter, Tensor], Tensor],
    ):
        super().__init__(params, lr)
        self.all_reduce = all_reduce

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient: PaperSGD's, of gradients that already include the decay
        and the local lr."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            for weight in group["params"]:
                if weight.grad is not None:
                    squares = torch.stack([weight.square().sum(), weight.grad.square().sum()])
                    norm, grad_norm = self.all_reduce(weight, squares).sqrt()
                    local = self.TRUST * norm / (grad_norm + decay * norm)
                    local = torch.where((norm > 0) & (grad_norm > 0), local, 1.0)
                    weight.grad.add_(weight, alpha=decay).mul_(local)
            group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


def build_optimizer(recipe: str, model: AlexNet, lr: float) -> PaperSGD:
    """The optimizer of a `--recipe`."""
    variant, biases = model.variant, {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    decay = {} if variant.bias_decay else {"weight_decay": 0.0}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in model.named_parameters() if name not in biases]},
        {"params": list(biases.values()), "lr_scale": variant.bias_lr_scale, **decay},
    ]
    if recipe == "paper":
        return PaperSGD(groups, lr)
    shard_group = {parameter: model.shard_group(name) for name, parameter in model.named_parameters()}
    return LARS(groups, lr, lambda parameter, squares: shard_group[parameter].all_reduce(squares))
