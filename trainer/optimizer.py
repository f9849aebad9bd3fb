"""The paper's optimizer and schedule (section 5), and what batches beyond its 128 need."""

from collections.abc import Callable, Iterable

import torch

from trainer.alexnet import AlexNet


class PaperSGD(torch.optim.Optimizer):
    """v = momentum * v - weight_decay * lr * w - lr * gradient; w = w + v.

    The rate is inside the velocity, so what was gathered at an old rate stays when the rate drops;
    torch.optim.SGD multiplies the whole velocity by the new rate, and equals this only while the rate stands still.
    Weight decay takes every parameter alike: the paper excepts none. A group's "lr_scale" is for whoever sets its rate.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.9, weight_decay: float = 0.0005
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "lr_scale": 1.0})
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["velocity"] = torch.zeros_like(weight)

    @torch.no_grad()
    def step(self, closure=None):
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
    have a local rate each, for the ratio of the two norms is far apart in them, as the authors found.

    Args: params: as in PaperSGD; total: makes the sums of squares that this process has for a parameter, a tensor,
    those of the whole parameter, where several processes hold a part of it each.
    """

    TRUST = 0.02

    def __init__(
        self,
        params: Iterable,
        lr: float,
        total: Callable[[torch.nn.Parameter, torch.Tensor], torch.Tensor],
        **more,
    ):
        super().__init__(params, lr, **more)
        self.total = total

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient: PaperSGD's, of gradients that already hold the decay and
        the local rate."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            for weight in group["params"]:
                if weight.grad is not None:
                    squares = torch.stack([weight.square().sum(), weight.grad.square().sum()])
                    norm, of_gradient = self.total(weight, squares).sqrt()
                    local = self.TRUST * norm / (of_gradient + decay * norm)
                    local = torch.where((norm > 0) & (of_gradient > 0), local, 1.0)
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
    groups = [
        {"params": [p for name, p in model.named_parameters() if name not in biases]},
        {"params": list(biases.values()), "lr_scale": variant.bias_lr_scale, **decay},
    ]
    if recipe == "paper":
        return PaperSGD(groups, lr)
    shard_group = {parameter: model.shard_group(name) for name, parameter in model.named_parameters()}
    return LARS(groups, lr, lambda parameter, squares: shard_group[parameter].all_reduce(squares))
