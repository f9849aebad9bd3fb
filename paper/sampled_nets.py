"""Dropout's nets, one by one: their average, and the one net with scaled outputs that stands for it (section 4.2)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from paper.small_net import SmallNet

DROPPED = 0.5  # the probability of dropping a neuron

Masks = Callable[[Tensor], Tensor]


def dropping(rng: torch.Generator, scale: float = 1.0) -> Masks:
    """Dropout in training, each image with a mask of its own. Args: scale: of what is kept; 1 in the paper's form, 2 in
    the inverted one."""

    def mask(x: Tensor) -> Tensor:
        return x * ((torch.rand(x.shape, generator=rng, device=x.device) >= DROPPED) * scale)

    return mask


def scaled(x: Tensor) -> Tensor:
    """The paper's test: all neurons, and their outputs times 0.5."""
    return x * (1 - DROPPED)


def one_net(rng: torch.Generator, layers: Sequence[bool]) -> Masks:
    """A net that dropout samples, the same for all images. Args: layers: which hidden layers it drops neurons of; those
    of the others are scaled."""
    number = -1

    def mask(x: Tensor) -> Tensor:
        nonlocal number
        number += 1
        if not layers[number]:
            return scaled(x)
        return x * (torch.rand(1, x.shape[1], generator=rng, device=x.device) >= DROPPED)

    return mask


def described(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """{"error", "nats"}: the share of images that are wrong, and the mean cross-entropy."""
    wrong = (log_probabilities.argmax(dim=1) != labels).double().mean()
    nats = -log_probabilities.gather(1, labels[:, None]).double().mean()
    return {"error": float(wrong), "nats": float(nats)}


@torch.inference_mode()
def averages(net: SmallNet, features: Tensor, labels: Tensor, most: int, layers: Sequence[bool]) -> dict[str, Any]:
    """Of up to `most` sampled nets: {"scaled": of the one net, "single": of a sampled net, in the mean, "by_count"}.

    Each is `described`; by_count lists, for 1, 2, 4, ... nets, "nets", "arithmetic" and "geometric", of the mean of
    their probabilities and of the geometric one, and "divergence", the Kullback-Leibler divergence, nats an image,
    of the scaled net's distribution from the geometric mean. Args: features: what the dense layers read; most: a
    power of two.
    """
    rng = torch.Generator(features.device).manual_seed(0)
    one = net.hidden(features, scaled).log_softmax(dim=1)
    total, logs = torch.zeros_like(one, dtype=torch.float64), torch.zeros_like(one, dtype=torch.float64)
    single, rows = [], []
    for number in range(1, most + 1):
        sampled = net.hidden(features, one_net(rng, layers)).log_softmax(dim=1).double()
        total += sampled.exp()
        logs += sampled
        single.append(
            torch.stack([(sampled.argmax(1) != labels).double().mean(), -sampled.gather(1, labels[:, None]).mean()])
        )
        if number.bit_count() == 1:
            geometric = (logs / number).log_softmax(dim=1)
            divergence = (geometric.exp() * (geometric - one)).sum(dim=1).mean()
            row = {"arithmetic": described((total / number).log(), labels), "geometric": described(geometric, labels)}
            rows.append({"nets": number, **row, "divergence": float(divergence)})
    error, nats = torch.stack(single).mean(dim=0).tolist()
    return {"scaled": described(one, labels), "single": {"error": error, "nats": nats}, "by_count": rows}


@torch.no_grad()
def inverted(net: SmallNet, make: Callable[[], SmallNet]) -> SmallNet:
    """The net of inverted dropout that is the same function: where a layer reads neurons that were dropped, half the
    weights, and nothing is scaled at test. Args: make: a net of the same shape."""
    other = make().to(next(net.parameters()))
    other.load_state_dict(net.state_dict())
    for layer in list(other.dense)[1:]:
        assert isinstance(layer.weight, Tensor)
        layer.weight.mul_(1 - DROPPED)
    return other
