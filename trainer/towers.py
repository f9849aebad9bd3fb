"""The exchange between the two towers (paper, section 3.2 and figure 2), over torch.distributed.

Each tower holds half of every layer's kernels. A layer that reads both towers needs the other's half of its input: an
all-gather over channels. Backwards, both towers' layers send gradients to that input, so its owner gets their sum: a
reduce-scatter.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class Towers:
    """Which towers this process holds, and the way to the other.

    Args: group: the torch.distributed process group of the two towers, rank 0 holding tower 0; None when both are here,
    and then every exchange is the identity.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.here = 2 if group is None else 1
        self.rank = 0 if group is None else dist.get_rank(group)

    def join(self, x: Tensor) -> Tensor:
        """Both towers' halves of a layer's input along dim 1; gradients are summed over the towers."""
        return x if self.group is None else _Join.apply(x, self)

    def output(self, x: Tensor) -> Tensor:
        """Both towers' halves of the net's output along dim 1, for a loss that both compute alike: each then takes its
        own half of one and the same gradient, and nothing is summed."""
        return x if self.group is None else _Output.apply(x, self)

    def gather_batch(self, x: Tensor) -> Tensor:
        """Both processes' samples, one after the other along dim 0; any dtype, no gradient."""
        return x if self.group is None else self._all_gather(x)

    def slice(self, canonical: Tensor) -> Tensor:
        """This place's half, along dim 0, of a parameter of the one-device net."""
        return canonical if self.group is None else canonical.chunk(2)[self.rank]

    def gather(self, own: Tensor) -> Tensor:
        """The one-device net's parameter from both halves of it: the inverse of `slice`, on both."""
        return own if self.group is None else self._all_gather(own.detach())

    def _all_gather(self, x: Tensor) -> Tensor:
        # The list forms, for the one-tensor forms changed their names in torch 2.13; the chunks are views, not copies
        both = x.new_empty(2 * x.shape[0], *x.shape[1:])
        dist.all_gather(list(both.chunk(2)), x.contiguous(), group=self.group)
        return both


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, towers):
        ctx.towers = towers
        return torch.cat(towers._all_gather(x).chunk(2), dim=1)

    @staticmethod
    def backward(ctx, grad):
        halves = [half.contiguous() for half in grad.chunk(2, dim=1)]
        own = torch.empty_like(halves[0])
        dist.reduce_scatter(own, halves, group=ctx.towers.group)
        return own, None


class _Output(_Join):
    @staticmethod
    def backward(ctx, grad):
        return grad.chunk(2, dim=1)[ctx.towers.rank].contiguous(), None
