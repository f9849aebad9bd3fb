"""A checkpoint's model in a file that other programs read, with its mean image and the names of its classes inside.

safetensors  the one-device model's parameters, and the mean
onnx         a graph, for onnxruntime and others
torchscript  a module that torch.jit.load runs without this project's code
torchvision  torchvision's alexnet is another network, so that this always says what does not map
"""

import importlib.util
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.trained import Trained
from pipeline import torchscript
from pipeline.geometry import CROP
from shards.atomic import atomic_write
from shards.errors import InputError
from trainer.alexnet import AlexNet
from trainer.lrn_cpu import K

METADATA = "alexnet.json"  # the name of what a TorchScript file says of itself


class PlainAlexNet(nn.Module):
    """The one-device model in PyTorch's own operations, in evaluation mode: N x 3 x 224 x 224 RGB images on the 0..255
    scale, the mean not yet subtracted, to logits, N x classes."""

    mean: Tensor

    def __init__(self, model: AlexNet, mean: Tensor):
        super().__init__()
        variant = model.variant
        self.register_buffer("mean", mean)
        self.conv1 = nn.Conv2d(3, model.conv1.out_channels, 11, 4)
        self.conv1.load_state_dict(model.conv1.state_dict())
        self.conv2, self.conv3, self.conv4, self.conv5 = model.conv2, model.conv3, model.conv4, model.conv5
        self.fc6, self.fc7, self.fc8 = model.fc6, model.fc7, model.fc8
        self.classes, self.towers, self.alpha, self.k = model.classes, model.local_towers, variant.alpha, K
        self.norm, self.relu, self.pool_window = variant.norm, variant.activation == "relu", int(variant.pool[0])
        self.activate_first = variant.first_block[0] == "activate"
        self.kept = 1.0 - model.dropout

    def activate(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.relu else torch.tanh(x)

    def normalize(self, x: Tensor) -> Tensor:
        if not self.norm:
            return x
        n, kernels, height, width = x.shape
        towers = x.reshape(n * self.towers, kernels // self.towers, height, width)
        # torch divides alpha by the window
        return F.local_response_norm(towers, 5, 5 * self.alpha, 0.75, self.k).reshape(n, kernels, height, width)

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.pool_window, 2)

    def forward(self, images: Tensor) -> Tensor:
        # Padded on the right and at the bottom, as the 2012 release does
        x = self.conv1(F.pad(images - self.mean, (0, 3, 0, 3)))
        if self.activate_first:
            x = self.pool(self.normalize(self.activate(x)))
        else:
            x = self.activate(self.pool(self.normalize(x)))
        x = self.pool(self.normalize(self.activate(self.conv2(x))))
        x = self.activate(self.conv4(self.activate(self.conv3(x))))
        x = self.pool(self.activate(self.conv5(x))).flatten(1)
        x = self.activate(self.fc6(x)) * self.kept
        x = self.activate(self.fc7(x)) * self.kept
        return self.fc8(x)[:, : self.classes]  # type: ignore[no-any-return]


def plain(trained: Trained) -> PlainAlexNet:
    """The model of a checkpoint on the CPU, its mean inside."""
    mean = trained.preprocess().mean.view(CROP, CROP, 3).permute(2, 0, 1).contiguous()
    return PlainAlexNet(trained.model.cpu(), mean.cpu()).eval()


def export(trained: Trained, format: str, out: Path) -> None:
    """Writes a checkpoint's model, completely or not at all. Raises InputError for what a format cannot hold, or for a
    package that it needs and that is missing."""
    data = FORMATS[format](trained)
    with atomic_write(out) as file:
        file.write(data)


def _safetensors(trained: Trained) -> bytes:
    module = plain(trained)
    metadata = {"format": "pt", **{name: json.dumps(value) for name, value in trained.described().items()}}
    return safetensors.torch.save({name: value.contiguous() for name, value in module.state_dict().items()}, metadata)


def _torchscript(trained: Trained) -> bytes:
    file = io.BytesIO()
    torchscript.save(plain(trained), file, {METADATA: json.dumps(trained.described())})
    return file.getvalue()


def _onnx(trained: Trained) -> bytes:
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"--format onnx needs the package {package}: pip install '.[onnx]'")
    images = torch.zeros(2, 3, CROP, CROP)
    batch = {"images": {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own way of copying what it traces
        program = torch.onnx.export(
            plain(trained),
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=batch,
        )
    assert program is not None
    proto = program.model_proto
    for name, value in trained.described().items():
        proto.metadata_props.add(key=name, value=json.dumps(value))
    data: bytes = proto.SerializeToString()
    return data


def _torchvision(trained: Trained) -> bytes:
    """Raises InputError: what torchvision's alexnet has otherwise, of which nothing may be lost silently."""
    model = trained.model
    theirs = {"conv1": 64, "conv2": 192, "conv3": 384, "conv4": 256, "conv5": 256}
    ours = {name: getattr(model, name).out_channels for name in theirs}
    kernels = [f"{name} {ours[name]} kernels, not {count}" for name, count in theirs.items() if ours[name] != count]
    has = [f"it has {', '.join(kernels)}"] if kernels else []
    if model.variant.towers == 2:
        has.append("its conv2, conv4 and conv5 read their own tower only")
    if model.variant.norm:
        has.append("it has local response normalization")
    has.append("its first convolution is padded by 3 on two sides, not by 2 on four, and its mean is an image")
    raise InputError(
        f"{trained.file} does not map to torchvision's alexnet, which is the network of Krizhevsky's 2014 paper: "
        f"{'; '.join(has)}. Choose --format torchscript, onnx or safetensors"
    )


FORMATS: dict[str, Callable[[Trained], bytes]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "torchscript": _torchscript,
    "torchvision": _torchvision,
}
