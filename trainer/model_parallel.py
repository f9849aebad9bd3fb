"""Which process holds which part of the model, and what the processes exchange (paper, section 3.2 and figure 2).

Each tower holds half of every layer's kernels. A layer that reads both towers needs the other's half of its input: an
all-gather over channels. Backwards, both towers' layers send gradients to that input, so its owner gets their sum: a
reduce-scatter. `docs/parallel.md` has the bytes.

The exchange is not overlapped with computing: each layer that reads both towers needs all of its input at once, and
what it could compute with its own half alone would be two small products instead of one.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from shards.errors import InputError


class LayoutError(InputError):
    """A model that cannot be split as its layout asks.

    Args: problem: what cannot be done; remedy: of a command that has --gpus and --parallel.
    """

    def __init__(self, problem: str, remedy: str):
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}"


class Exchange(NamedTuple):
    """One exchange of a group: `shape` and `dtype` are those of the tensor that a process gives, or is left with."""

    kind: Literal["all_gather", "reduce_scatter"]
    shape: torch.Size
    dtype: torch.dtype


def _untraced(exchange: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An exchange that torch.compile does not trace into: it compiles what is between them. The compiler is imported
    here, which takes seconds, so not before there is an exchange."""
    disabled: Callable[..., Tensor] = torch.compiler.disable(exchange)  # type: ignore[no-untyped-call]
    return disabled


class Group:
    """Processes of a torch.distributed process group, and this one's rank among them. Args: group: None for one process
    alone."""

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)

    def all_reduce(self, own: Tensor) -> Tensor:
        """The sum over the group of a tensor of any shape, in place."""
        if self.group is not None:
            dist.all_reduce(own, group=self.group)
        return own


class Replicas(Group):
    """Processes that hold the same parameters and see different images of the global batch, in the order of their
    images."""


class ShardGroup(Group):
    """The processes that hold equal shards of a layer's kernels, in the order of the shards, and the exchanges between
    them. When one process holds all, every exchange is the identity."""

    def __init__(self, group: dist.ProcessGroup | None = None):
        super().__init__(group)
        self.on_exchange: Callable[[Exchange], None] | None = None  # called with each exchange, to measure them
        self.bytes_sent = 0  # by this process to the others, by the algorithms' lower bounds
        if group is not None:
            self._all_gather_channels = _untraced(_AllGatherChannels.apply)

    def enter_dense(self, x: Tensor) -> Tensor:
        """The input of the dense layers, from this process's output of the convolutions, N x C x H x W."""
        return self.all_gather_channels(x)

    def all_gather_channels(self, x: Tensor) -> Tensor:
        """All shards of a layer's input along dim 1; gradients are summed over the shards."""
        return x if self.group is None else self._all_gather_channels(x, self)

    def cross_entropy(self, logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
        """The sum of the rows' cross-entropies, nats, from this process's columns of N x classes logits; rows labelled
        `ignore` count nothing. Three numbers a row are exchanged, and no logits."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if self.group is None:
            return F.cross_entropy(logits, labels, ignore_index=ignore, reduction="sum")
        loss: Tensor = _CrossEntropy.apply(logits, labels, ignore, self)  # type: ignore[no-untyped-call]
        return loss

    def gather_logits(self, own: Tensor) -> Tensor:
        """All shards along dim 1, where no gradient is needed."""
        return own if self.group is None else torch.cat(self.all_gather(own).chunk(self.size), dim=1)

    def gather_batch(self, x: Tensor) -> Tensor:
        """All processes' rows, one after the other along dim 0; any dtype, no gradient."""
        return x if self.group is None else self.all_gather(x)

    def shard(self, unsharded: Tensor) -> Tensor:
        """This process's shard, along dim 0, of a parameter of the one-device model."""
        return unsharded if self.group is None else unsharded.chunk(self.size)[self.rank]

    def unshard(self, own: Tensor) -> Tensor:
        """The one-device model's parameter from all shards of it, on every process: the inverse of `shard`."""
        return own if self.group is None else self.all_gather(own.detach())

    def all_gather(self, x: Tensor) -> Tensor:
        # The list forms, because the one-tensor forms changed their names in torch 2.13; the chunks are views
        gathered = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        dist.all_gather(list(gathered.chunk(self.size)), x.contiguous(), group=self.group)
        self._record("all_gather", x)
        return gathered

    def reduce_scatter(self, parts: list[Tensor]) -> Tensor:
        own = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
        dist.reduce_scatter(own, [part.contiguous() for part in parts], group=self.group)
        self._record("reduce_scatter", own)
        return own

    def _record(self, kind: Literal["all_gather", "reduce_scatter"], own: Tensor) -> None:
        self.bytes_sent += (self.size - 1) * own.nbytes
        if self.on_exchange is not None:
            self.on_exchange(Exchange(kind, own.shape, own.dtype))


class DenseShardGroup(ShardGroup):
    """The dense layers' neurons over all processes, while each runs all convolutions on its own images ("One weird
    trick for parallelizing convolutional neural networks", Krizhevsky 2014, his scheme with the whole batch at
    once)."""

    def __init__(self, group: dist.ProcessGroup | None = None):
        super().__init__(group)
        self._all_gather_batch = _untraced(_AllGatherBatch.apply)

    def enter_dense(self, x: Tensor) -> Tensor:
        """Every process's images, along dim 0."""
        return self._all_gather_batch(x, self)


class _AllGatherChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ShardGroup) -> Tensor:
        ctx.group = group
        return torch.cat(group.all_gather(x).chunk(group.size), dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.reduce_scatter(list(grad.chunk(ctx.group.size, dim=1))), None


class _AllGatherBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ShardGroup) -> Tensor:
        ctx.group = group
        return group.all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # The convolutions' gradients are of these rows alone, and DistributedDataParallel takes the processes' mean;
        # the loss is of all rows already, so their sum is what is needed
        return ctx.group.reduce_scatter(list(grad.chunk(ctx.group.size))) * ctx.group.size, None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore: int, group: ShardGroup) -> Tensor:
        largest = logits.max(dim=1).values
        exponentials = (logits - largest[:, None]).exp()
        # The target's logit, where the label is among this process's columns
        target = labels - group.rank * logits.shape[1]
        is_here = (target >= 0) & (target < logits.shape[1])
        target = target.clamp(0, logits.shape[1] - 1)[:, None]
        target_logit = logits.gather(1, target)[:, 0].masked_fill(~is_here, 0)
        gathered = group.all_gather(torch.stack([largest, exponentials.sum(dim=1), target_logit])[None])
        largests, sums, target_logits = gathered.unbind(dim=1)
        overall = largests.max(dim=0).values
        total = (sums * (largests - overall).exp()).sum(dim=0)
        counts = labels != ignore
        softmax = exponentials * ((largest - overall).exp() / total)[:, None]
        ctx.save_for_backward(softmax.scatter_add_(1, target, -is_here.to(softmax.dtype)[:, None]) * counts[:, None])
        return ((total.log() + overall - target_logits.sum(dim=0)) * counts).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (logits_grad,) = ctx.saved_tensors
        return grad * logits_grad, None, None, None


class Layout(NamedTuple):
    """The parts of the model that a process holds, and the images it sees.

    towers: the group that shares the convolutions' kernels; dense: the group that shares the dense layers' neurons;
    replicas: the processes that hold the same as this one, dense layers included, and see other images.
    """

    towers: ShardGroup
    dense: ShardGroup
    replicas: Replicas

    @property
    def is_hybrid(self) -> bool:
        """Whether the processes that share the dense layers each run all convolutions, on images of their own."""
        return isinstance(self.dense, DenseShardGroup)

    @property
    def gradient_group(self) -> dist.ProcessGroup | None:
        """The processes over which DistributedDataParallel averages gradients; None without it."""
        return self.dense.group if self.is_hybrid else self.replicas.group


def unsharded_layout() -> Layout:
    """All of the model in one process."""
    towers = ShardGroup()
    return Layout(towers, towers, Replicas())


def replicate(model: torch.nn.Module, layout: Layout) -> torch.nn.Module:
    """The module to train: `model`, with the gradients of parameters that several processes hold averaged over these
    by PyTorch's DistributedDataParallel."""
    if layout.gradient_group is None:
        return model
    ddp = torch.nn.parallel.DistributedDataParallel
    if layout.is_hybrid:
        own = [name for name, _ in model.named_parameters() if name.startswith("fc")]
        ddp._set_params_and_buffers_to_ignore_for_model(model, own)  # type: ignore[no-untyped-call]
    return ddp(model, process_group=layout.gradient_group, gradient_as_bucket_view=True)
