"""The model, layer by layer (paper, sections 3.1 to 3.5 and figure 2).

One description serves one device and two. In figure 2 each device holds half of every layer's kernels, its tower;
conv2, conv4 and conv5 read their own tower only, conv3 and the fully connected layers read both. A process holds one
tower or both, as one tensor each, side by side; where a layer reads both they are joined, and
`ShardGroup.all_gather_channels` brings the one that another process holds. A tower's parameter is the matching half,
along dim 0, of the one-device model's: that one is the unsharded form. `trainer.model_parallel.Layout` says which
process holds what.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.lrn import local_response_norm
from trainer.model_parallel import Layout, LayoutError, ShardGroup, unsharded_layout

# The layers whose biases start at 1, so that their ReLUs see positive inputs at first (section 5)
POSITIVE_BIASES = ("conv2", "conv4", "conv5", "fc6", "fc7")


class Variant(NamedTuple):
    """In what a model may differ from the paper's.

    activation: "relu" or "tanh" (section 3.1); norm: local response normalization (3.3); alpha: its weight of a
    square; pool: "3/2", windows of 3 with stride 2, or "2/2" (3.4); first_block: the order of the first layer's
    steps; towers: 2, or 1 (3.2); half: half the kernels in each convolution but the last (3.2, footnote 2);
    middle_std: the standard deviation of the initial weights of conv3 to conv5; bias_lr_scale: the biases' learning
    rate in multiples of the weights'; bias_decay: whether weight decay applies to biases.
    """

    activation: str = "relu"
    norm: bool = True
    alpha: float = 1e-4
    pool: str = "3/2"
    first_block: tuple[str, ...] = ("activate", "normalize", "pool")
    towers: int = 2
    half: bool = False
    middle_std: float = 0.01
    bias_lr_scale: float = 1.0
    bias_decay: bool = True


VARIANTS = {
    "paper": Variant(),
    # The 2012 release (layers-145.cfg): the order of its first block, its division of alpha by the window, its initial
    # weights of the middle layers; biases at twice the learning rate (which it does not divide) and without decay
    "release-2012": Variant(
        alpha=1e-4 / 5,
        first_block=("normalize", "pool", "activate"),
        middle_std=0.03,
        bias_lr_scale=2.0,
        bias_decay=False,
    ),
    # Section 3.2, footnote 2: half the kernels in each convolution but the last, and all of the dense layers
    "one-tower": Variant(towers=1, half=True),
}


class FirstConvolution(nn.Conv2d):
    """Kernels of 11 x 11, stride 4. 224 inputs give 55 outputs (figure 2) when padded by 3, which the 2012 release
    does on the right and bottom.

    It is computed as kernels of 3 x 3, stride 1, over squares of 4 x 4 pixels as 48 channels: the same sums with some
    more zeros, in less time, because 3 channels do not fill a vector register (forward and backward take 0.7 of it,
    docs/speed.md).
    """

    def __init__(self, kernels: int):
        super().__init__(3, kernels, 11, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.parts(images, 1)[0]

    def parts(self, images: Tensor, count: int) -> list[Tensor]:
        """The output in `count` equal shares of the kernels."""
        squares = F.pixel_unshuffle(F.pad(images, (0, 4, 0, 4)), 4)
        weight = F.pixel_unshuffle(F.pad(self.weight, (0, 1, 0, 1)), 4)
        return [F.conv2d(squares, w, b) for w, b in _shares(weight, self.bias, count)]


def _shares(weight: Tensor, bias: Tensor | None, parts: int) -> Iterable[tuple[Tensor, Tensor]]:
    """A layer's parameters in equal shares of its kernels."""
    assert bias is not None
    return zip(weight.chunk(parts), bias.chunk(parts), strict=True)


class AlexNet(nn.Module):
    """N x 3 x 224 x 224 images (mean-subtracted, 0..255 scale) to logits: this process's columns of N x classes.

    Args:
        classes: an odd number gets one unused output with logit -3e38, so that both towers hold equally many.
        width: share of the paper's kernels and neurons in every layer, for small machines.
        dropout: probability of dropping a neuron of fc6 and fc7 (section 4.2).
        layout: which processes hold which part; by default this process holds all.
        variant: the paper's by default.
    Raises: ValueError when `width` leaves a layer without kernels; LayoutError when one cannot be split equally.
    """

    def __init__(
        self,
        classes: int = 1000,
        width: float = 1.0,
        dropout: float = 0.5,
        layout: Layout | None = None,
        variant: Variant = VARIANTS["paper"],
    ):
        super().__init__()
        self.layout = layout or unsharded_layout()
        self.classes, self.width, self.dropout = classes, width, dropout
        self.variant = variant
        if variant.towers < self.layout.towers.size:
            problem = "a model of one tower cannot be split into two"
            raise LayoutError(problem, "choose --gpus 1, or --parallel data")
        k96, k256, k384, k4096 = (_scaled(kernels, width) for kernels in (96, 256, 384, 4096))
        last = k256
        if variant.half:
            k96, k256, k384 = k96 // 2, k256 // 2, k384 // 2

        def conv(reads: int, kernels: int, size: int, *, both: bool) -> nn.Conv2d:
            # `reads` and `kernels` count all towers; a layer that reads its own has a group for each local tower
            groups = 1 if both else self.local_towers
            reads = reads if both else reads // self.layout.towers.size
            return nn.Conv2d(reads, kernels // self.layout.towers.size, size, padding=size // 2, groups=groups)

        def dense(reads: int, neurons: int) -> nn.Linear:
            if neurons % self.layout.dense.size:
                problem = f"{neurons} neurons of a dense layer cannot be split equally over {self.layout.dense.size}"
                raise LayoutError(f"{problem} devices", "choose another --gpus or --parallel")
            return nn.Linear(reads, neurons // self.layout.dense.size)

        #                 reads         kernels  size                            output
        self.conv1 = FirstConvolution(k96 // self.layout.towers.size)  #  55 x 55, pooled to 27 x 27
        self.conv2 = conv(k96, k256, 5, both=False)  #                    27 x 27, pooled to 13 x 13
        self.conv3 = conv(k256, k384, 3, both=True)  #                    13 x 13
        self.conv4 = conv(k384, k384, 3, both=False)  #                   13 x 13
        self.conv5 = conv(k384, last, 3, both=False)  #                   13 x 13, pooled to 6 x 6
        self.fc6 = dense(last * 6 * 6, k4096)
        self.fc7 = dense(k4096, k4096)
        self.fc8 = dense(k4096, classes + classes % 2)

    def forward(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Logits; in training mode dropout draws from `rng`, a generator on the images' device."""
        towers, dense, _ = self.layout
        count = self._parts(images)
        normalize = partial(self.normalize, towers=self.local_towers // count)
        steps: dict[str, Callable[[Tensor], Tensor]] = {
            "activate": self.activate,
            "normalize": normalize,
            "pool": self.pool,
        }
        parts = [self.conv1(images)] if count == 1 else self.conv1.parts(images, count)
        for step in self.variant.first_block:
            parts = [steps[step](x) for x in parts]
        parts = [self.pool(normalize(self.activate(x))) for x in self._convolve(parts, self.conv2)]
        both = towers.all_gather_channels(torch.cat(parts, dim=1))
        parts = [self.activate(x) for x in self._convolve([both] * len(parts), self.conv3)]
        parts = [self.activate(x) for x in self._convolve(parts, self.conv4)]
        parts = [self.pool(self.activate(x)) for x in self._convolve(parts, self.conv5)]
        x = torch.cat(parts, dim=1)
        x = self.apply_dropout(self.activate(self.fc6(dense.enter_dense(x).flatten(1))), rng)
        x = self.apply_dropout(self.activate(self.fc7(dense.all_gather_channels(x))), rng)
        x = self.fc8(dense.all_gather_channels(x))
        unused = x.shape[1] * (dense.rank + 1) - self.classes
        return x if unused <= 0 else F.pad(x[:, :-unused], (0, unused), value=torch.finfo(x.dtype).min)

    @property
    def local_towers(self) -> int:
        """How many towers this process holds."""
        return self.variant.towers // self.layout.towers.size

    def _parts(self, images: Tensor) -> int:
        """In how many tensors the towers of this process are: on a GPU each in its own, for cuDNN slices, transposes
        and copies for a convolution in groups; on a CPU all in one, where neither was faster (docs/speed.md)."""
        return self.local_towers if images.is_cuda else 1

    def _convolve(self, parts: list[Tensor], layer: nn.Conv2d) -> list[Tensor]:
        """A layer's output, in as many parts as its input."""
        if len(parts) == 1:
            return [layer(parts[0])]
        groups = max(1, layer.groups // len(parts))
        shares = zip(parts, _shares(layer.weight, layer.bias, len(parts)), strict=True)
        return [F.conv2d(x, weight, bias, padding=layer.padding, groups=groups) for x, (weight, bias) in shares]

    def activate(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.variant.activation == "relu" else x.tanh()

    def normalize(self, x: Tensor, towers: int) -> Tensor:
        return local_response_norm(x, towers, self.variant.alpha) if self.variant.norm else x

    def pool(self, x: Tensor) -> Tensor:
        """Overlapping max pooling: windows of 3 with stride 2 (section 3.4); or of 2, which do not overlap."""
        return F.max_pool2d(x, 3 if self.variant.pool == "3/2" else 2, 2)

    def probabilities(self, images: Tensor) -> Tensor:
        """The softmax over all classes, N x classes, for all images of the group that shares the dense layers."""
        return self.layout.dense.gather_logits(self(images))[:, : self.classes].softmax(dim=1)

    def apply_dropout(self, x: Tensor, rng: torch.Generator | None) -> Tensor:
        """Dropout as in section 4.2: neurons are zeroed in training, and outputs scaled by 1 - p in testing.

        The mask is drawn for the global batch and all neurons, and each process takes its part, so that all layouts
        drop the same neurons.
        """
        if self.dropout == 0:
            return x
        if not self.training:
            return x * (1 - self.dropout)
        if rng is None:
            raise ValueError("training with dropout needs `rng`, the generator that draws the masks")
        rows, neurons = x.shape
        _, dense, replicas = self.layout
        kept = torch.rand(rows * replicas.size, neurons * dense.size, generator=rng, device=x.device) >= self.dropout
        return x * kept.narrow(0, replicas.rank * rows, rows).narrow(1, dense.rank * neurons, neurons)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Initial weights, the same in any layout: N(0, 0.01), biases 1 in POSITIVE_BIASES, 0 elsewhere (section 5).

        A layer of a narrower model sums fewer inputs, so its weights are larger by 1 / sqrt(width), which keeps the
        sums at the paper's size; without that the signal fades layer by layer. conv1 reads the same image at any width.
        """
        rng = torch.Generator().manual_seed(seed)
        for name, layer in self.named_children():
            assert isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
            own, shard_group = layer.weight, self.shard_group(name)
            std = self.variant.middle_std if name in ("conv3", "conv4", "conv5") else 0.01
            std = std if name == "conv1" else std / self.width**0.5
            unsharded = torch.empty(own.shape[0] * shard_group.size, *own.shape[1:])
            own.copy_(shard_group.shard(unsharded.normal_(0, std, generator=rng)))
            layer.bias.fill_(1.0 if name in POSITIVE_BIASES else 0.0)

    def shard_group(self, name: str) -> ShardGroup:
        """The processes that share a parameter, or the layer of that name."""
        return self.layout.dense if name.startswith("fc") else self.layout.towers

    def unsharded_state_dict(self) -> dict[str, Tensor]:
        """The one-device model's parameters by name, gathered from their shards; all processes must call."""
        return {name: self.shard_group(name).unshard(parameter.detach()) for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def load_unsharded(self, state: dict[str, Tensor]) -> None:
        """Takes this process's shards of the one-device model's parameters.

        Raises: ValueError naming a parameter that is missing, unknown or of another shape.
        """
        own = dict(self.named_parameters())
        if own.keys() != state.keys():
            raise ValueError(f"parameters differ: {', '.join(sorted(own.keys() ^ state.keys()))}")
        for name, parameter in own.items():
            shard = self.shard_group(name).shard(state[name])
            if shard.shape != parameter.shape:
                raise ValueError(f"{name} is {tuple(shard.shape)}, and this model's is {tuple(parameter.shape)}")
            parameter.copy_(shard)


def model_from_config(config: TrainConfig, classes: int, layout: Layout) -> AlexNet:
    """The model that a run's configuration describes."""
    variant = VARIANTS[config.variant]._replace(activation=config.activation, norm=config.norm, pool=config.pool)
    return AlexNet(classes, config.width, config.dropout, layout, variant)


def _scaled(kernels: int, width: float) -> int:
    """A layer's kernels at a width: even, for two towers."""
    scaled = 2 * round(kernels * width / 2)
    if scaled == 0:
        raise ValueError(f"width {width} leaves no kernels of {kernels}")
    return scaled
