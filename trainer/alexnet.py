"""The net, layer by layer (paper, sections 3.1 to 3.5 and figure 2).

One description serves one device and two. In figure 2 each device holds half of every layer's kernels, its tower;
conv2, conv4 and conv5 read their own tower only, conv3 and the fully connected layers read both. On one device the
towers lie side by side and "own tower only" is a convolution in two groups; on two, each holds its half as dense layers
and `towers.join` brings the other's half where a layer reads both. A tower's parameter is the matching half, along dim
0, of the one-device net's: that one is the canonical form. Which processes hold what is `trainer.towers.Layout`'s.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards.errors import InputError
from trainer.lrn import local_response_norm
from trainer.towers import Layout, Towers, whole

# The layers whose biases start at 1, so that their ReLUs see positive inputs at first (section 5)
POSITIVE_BIASES = ("conv2", "conv4", "conv5", "fc6", "fc7")


class AlexNet(nn.Module):
    """N x 3 x 224 x 224 pictures (mean-subtracted, 0..255 scale) to logits: this process's columns of N x classes.

    Args:
        classes: an odd number gets one idle output more, so that both towers hold as many, whose logit is -3e38.
        width: share of the paper's kernels and neurons in every layer, for small machines.
        dropout: probability of dropping a neuron of fc6 and fc7 (section 4.2).
        layout: which processes hold which part; all here by default.
    Raises: ValueError when `width` leaves a layer without kernels; InputError when one cannot be shared equally.
    """

    def __init__(self, classes: int = 1000, width: float = 1.0, dropout: float = 0.5, layout: Layout | None = None):
        super().__init__()
        self.layout = layout or whole()
        self.classes, self.width, self.dropout = classes, width, dropout
        here = 2 // self.layout.towers.size  # of the two towers
        k96, k256, k384, k4096 = (_scaled(kernels, width) for kernels in (96, 256, 384, 4096))

        def conv(reads: int, kernels: int, size: int, *, both: bool, stride: int = 1) -> nn.Conv2d:
            # `reads` and `kernels` count both towers; a layer that reads its own has a group for each tower here
            groups = 1 if both else here
            reads = reads if both else reads * here // 2
            padding = 0 if stride > 1 else size // 2
            return nn.Conv2d(reads, kernels * here // 2, size, stride, padding, groups=groups)

        def dense(reads: int, neurons: int) -> nn.Linear:
            if neurons % self.layout.dense.size:
                shared = f"{neurons} neurons of a dense layer cannot be shared equally by {self.layout.dense.size}"
                raise InputError(f"{shared} devices: choose another --gpus or --parallel")
            return nn.Linear(reads, neurons // self.layout.dense.size)

        #                 reads         kernels  size                            output
        self.conv1 = conv(3, k96, 11, stride=4, both=True)  #             55 x 55, pooled to 27 x 27
        self.conv2 = conv(k96, k256, 5, both=False)  #                    27 x 27, pooled to 13 x 13
        self.conv3 = conv(k256, k384, 3, both=True)  #                    13 x 13
        self.conv4 = conv(k384, k384, 3, both=False)  #                   13 x 13
        self.conv5 = conv(k384, k256, 3, both=False)  #                   13 x 13, pooled to 6 x 6
        self.fc6 = dense(k256 * 6 * 6, k4096)
        self.fc7 = dense(k4096, k4096)
        self.fc8 = dense(k4096, classes + classes % 2)

    def forward(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Logits; in training mode dropout draws from `rng`, a generator on the images' device."""
        towers, dense, _ = self.layout
        here = 2 // towers.size
        # 224 inputs give 55 outputs (figure 2) when padded by 3, which the 2012 release does on the right and bottom
        x = F.relu(self.conv1(F.pad(images, (0, 3, 0, 3))))
        x = pool(local_response_norm(x, here))
        x = F.relu(self.conv2(x))
        x = pool(local_response_norm(x, here))
        x = F.relu(self.conv3(towers.join(x)))
        x = F.relu(self.conv4(x))
        x = pool(F.relu(self.conv5(x)))
        x = self.drop(F.relu(self.fc6(dense.enter(x).flatten(1))), rng)
        x = self.drop(F.relu(self.fc7(dense.join(x))), rng)
        x = self.fc8(dense.join(x))
        idle = x.shape[1] * (dense.rank + 1) - self.classes
        return x if idle <= 0 else F.pad(x[:, :-idle], (0, idle), value=torch.finfo(x.dtype).min)

    def probabilities(self, images: Tensor) -> Tensor:
        """The softmax over all classes, N x classes, for all pictures of those that share the dense layers."""
        return self.layout.dense.columns(self(images))[:, : self.classes].softmax(dim=1)

    def drop(self, x: Tensor, rng: torch.Generator | None) -> Tensor:
        """Dropout as section 4.2 has it: neurons are zeroed in training, and outputs scaled by 1 - p in testing.

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
    def initialise(self, seed: int) -> None:
        """Fresh weights, the same for any layout: N(0, 0.01), biases 1 in POSITIVE_BIASES and 0 elsewhere (section 5).

        A layer of a narrower net sums fewer inputs, so its weights are wider by 1 / sqrt(width), which keeps the sums
        at the paper's size; without that the signal fades layer by layer. conv1 reads the same picture at any width.
        """
        rng = torch.Generator().manual_seed(seed)
        for name, layer in self.named_children():
            own, holders = layer.weight, self.holders(name)
            std = 0.01 if name == "conv1" else 0.01 / self.width**0.5
            canonical = torch.empty(own.shape[0] * holders.size, *own.shape[1:])
            own.copy_(holders.slice(canonical.normal_(0, std, generator=rng)))
            layer.bias.fill_(1.0 if name in POSITIVE_BIASES else 0.0)

    def holders(self, name: str) -> Towers:
        """Who hold a parameter, or the layer of that name, between them."""
        return self.layout.dense if name.startswith("fc") else self.layout.towers

    def canonical_state(self) -> dict[str, Tensor]:
        """The one-device net's parameters by name, from all that hold parts of them; all must call."""
        return {name: self.holders(name).gather(parameter.detach()) for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def load_canonical(self, state: dict[str, Tensor]) -> None:
        """Takes this place's part of the one-device net's parameters.

        Raises: ValueError naming a parameter that is missing, unknown or of another shape.
        """
        own = dict(self.named_parameters())
        if own.keys() != state.keys():
            raise ValueError(f"parameters differ: {', '.join(sorted(own.keys() ^ state.keys()))}")
        for name, parameter in own.items():
            part = self.holders(name).slice(state[name])
            if part.shape != parameter.shape:
                raise ValueError(f"{name} is {tuple(part.shape)}, and this net's is {tuple(parameter.shape)}")
            parameter.copy_(part)


def pool(x: Tensor) -> Tensor:
    """Overlapping max pooling: windows of 3, 2 apart (section 3.4)."""
    return F.max_pool2d(x, 3, 2)


def _scaled(kernels: int, width: float) -> int:
    """A layer's kernels at a width: even, for two towers."""
    scaled = 2 * round(kernels * width / 2)
    if scaled == 0:
        raise ValueError(f"width {width} leaves no kernels of {kernels}")
    return scaled
