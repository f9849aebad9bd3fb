"""The paper's optimizer (section 5), and LARS for batches beyond its 128."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.alexnet import AlexNet
from trainer.model_parallel import ShardGroup


class PaperSGD(torch.optim.Optimizer):
    """v = momentum * v - weight_decay * lr * w - lr * gradient; w = w + v.

    The learning rate is inside the velocity, so what was accumulated at an old lr stays when the lr drops;
    torch.optim.SGD multiplies all of the velocity by the new lr, and equals this only while the lr does not change.
    Weight decay applies to every parameter: the paper excepts none. A group's lr is to be set in multiples of its
    "lr_scale".

    Args: params: parameters, or groups of them as torch.optim takes them.
    """

    # torch.amp.GradScaler then sets found_inf for a step, a float32 tensor, and leaves it to the step to skip itself:
    # reading it would wait for the device
    _step_supports_amp_scaling = True

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
        """One update of every parameter that has a gradient; of none after an overflow in fp16."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None:
            found_inf = found_inf.clamp(max=1.0)  # the kernel compares with 1, and several processes add theirs up
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
                    found_inf=found_inf,
                )
        return loss


class LARS(PaperSGD):
    """Layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017, arXiv 1708.03888, algorithm 1), for large batches.

    v = momentum * v - local * lr * (gradient + weight_decay * w); w = w + v, where local is, for each parameter,
    TRUST * |w| / (|gradient| + weight_decay * |w|), and 1 where |w| or |gradient| is 0. A layer's weights and biases
    have a local lr each, because the ratio of the two norms differs widely between them, as the authors found.

    Args: params: as in PaperSGD; shard_groups: of each parameter, the processes that share it, which together take the
    norms of the unsharded parameter.
    """

    TRUST = 0.02

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        shard_groups: Mapping[nn.Parameter, ShardGroup],
    ):
        super().__init__(params, lr)
        self.shard_groups = shard_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient: PaperSGD's, of gradients that already include the decay
        and the local lr."""
        decays = [group["weight_decay"] for group in self.param_groups]
        local = self._local_lrs()
        for group, decay in zip(self.param_groups, decays, strict=True):
            weights = [weight for weight in group["params"] if weight.grad is not None]
            gradients = [weight.grad for weight in weights]
            if weights:
                torch._foreach_add_(gradients, weights, alpha=decay)
                torch._foreach_mul_(gradients, [local[weight] for weight in weights])
            group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    def _local_lrs(self) -> dict[nn.Parameter, Tensor]:
        """The local lr of each parameter that has a gradient, a scalar on its device. All parameters of a shard group
        take part in one exchange; nothing waits for the device."""
        shared: dict[ShardGroup, dict[nn.Parameter, float]] = {}
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    shared.setdefault(self.shard_groups[weight], {})[weight] = group["weight_decay"]
        local: dict[nn.Parameter, Tensor] = {}
        for shard_group, decays in shared.items():
            tensors = [*decays, *(weight.grad for weight in decays if weight.grad is not None)]
            norms = shard_group.all_reduce(_squares(tensors).view(2, -1)).sqrt()
            norm, grad_norm = norms
            decayed = torch.stack(torch._foreach_mul(norm.unbind(), list(decays.values())))
            lrs = (self.TRUST * norm / (grad_norm + decayed)).masked_fill_(~(norms > 0).all(dim=0), 1.0)
            local |= zip(decays, lrs.unbind(), strict=True)
        return local


def _squares(tensors: list[Tensor]) -> Tensor:
    """The sum of squares of each, a vector."""
    if not tensors[0].is_cuda:
        # A CPU adds up one number after the other, and of all of fc6 at once the norm in float32 was 0.2 % off
        tensors = [torch.linalg.vector_norm(tensor.view(len(tensor), -1), dim=1) for tensor in tensors]
    return torch.stack(torch._foreach_norm(tensors)).square()


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
    return LARS(groups, lr, {parameter: model.shard_group(name) for name, parameter in model.named_parameters()})
