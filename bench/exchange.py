"""What ranks send one another in a step, recorded once and then repeated without the step."""

from collections.abc import Callable

import torch
import torch.distributed as dist

from trainer.alexnet import AlexNet
from trainer.model_parallel import Exchange, ShardGroup
from trainer.rank import RankContext


def record_exchange(
    step: Callable[[], object], model: AlexNet, context: RankContext
) -> tuple[Callable[[], None], float]:
    """A function that repeats what this rank exchanges in `step`, on tensors of the same sizes, and the bytes that the
    rank sends in it."""
    groups = list(dict.fromkeys((context.layout.towers, context.layout.dense)))
    exchanges: list[tuple[ShardGroup, Exchange]] = []
    for group in groups:
        group.on_exchange = lambda exchange, group=group: exchanges.append((group, exchange))
    step()
    for group in groups:
        group.on_exchange = None
    calls = [repeated_call(group, exchange, context.device) for group, exchange in exchanges]
    replicas = context.layout.gradient_group
    gradients = torch.zeros(replicated_parameters(model, context) if replicas else 0, device=context.device)

    def repeat() -> None:
        for call in calls:
            call()
        if replicas:
            dist.all_reduce(gradients, group=replicas)

    before = [group.bytes_sent for group in groups]
    repeat()
    sent = sum(group.bytes_sent - so_far for group, so_far in zip(groups, before, strict=True))
    members = dist.get_world_size(replicas) if replicas else 1
    return repeat, sent + 2 * (members - 1) / members * gradients.nbytes


def repeated_call(group: ShardGroup, exchange: Exchange, device: torch.device) -> Callable[[], object]:
    """The same exchange, of zeros."""
    zeros = torch.zeros(exchange.shape, dtype=exchange.dtype, device=device)
    if exchange.kind == "all_gather":
        return lambda: group.all_gather(zeros)
    return lambda: group.reduce_scatter([zeros] * group.size)


def replicated_parameters(model: AlexNet, context: RankContext) -> int:
    """How many numbers DistributedDataParallel averages: the parameters that several ranks hold alike."""
    own_dense = context.layout.is_hybrid
    return sum(p.numel() for name, p in model.named_parameters() if not (own_dense and name.startswith("fc")))
