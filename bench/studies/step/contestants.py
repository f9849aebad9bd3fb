"""The contestants of the step study: ours as `train` runs it, and plain PyTorch, each in a process of its own."""

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness.model_step import ModelOptions, ModelStep
from bench.harness.turns import interleaved, ratios, summarize
from shards.processes import cores
from trainer.alexnet import AlexNet, FirstConvolution
from trainer.model_parallel import unsharded_layout
from trainer.rank import RankContext, reuse_memory

BATCH = 128
STEPS = (
    *("plain", "reusing", "ours", "grouped", "side by side", "no LRN", "compiled", "bf16", "bf16 compiled"),
    *("CUDA graphs", "compiled, CUDA graphs"),
)
# Of the towers' two forms "ours" is side by side on a GPU and grouped on a CPU
ONLY_ON = {"grouped": "cuda", "side by side": "cpu", "CUDA graphs": "cuda", "compiled, CUDA graphs": "cuda"}
# Each layer's forward pass as a matrix product: an image's positions, numbers that an output reads, outputs, groups
PRODUCTS = {
    "conv1": (55 * 55, 3 * 11 * 11, 96, 1),
    "conv2": (27 * 27, 48 * 5 * 5, 128, 2),
    "conv3": (13 * 13, 256 * 3 * 3, 384, 1),
    "conv4": (13 * 13, 192 * 3 * 3, 192, 2),
    "conv5": (13 * 13, 192 * 3 * 3, 128, 2),
    "fc6": (1, 256 * 6 * 6, 4096, 1),
    "fc7": (1, 4096, 4096, 1),
    "fc8": (1, 4096, 1000, 1),
}
MACS = {name: positions * reads * outputs * groups for name, (positions, reads, outputs, groups) in PRODUCTS.items()}
# Of an image's training step: a layer's backward pass is two products, but the first layer's input needs no gradient
OPERATIONS = 2 * (3 * sum(MACS.values()) - MACS["conv1"])
# A ratio's two contestants, the one over the other, and its target
RATIOS: dict[str, tuple[str, str, float | None]] = {
    "ours / plain": ("ours", "plain", 1.7),
    "ours / reusing": ("ours", "reusing", None),
    "ours / grouped": ("ours", "grouped", None),
    "ours / side by side": ("ours", "side by side", None),
    "ours / no LRN (the tax)": ("ours", "no LRN", None),
    "compiled / ours": ("compiled", "ours", None),
    "bf16 / ours": ("bf16", "ours", None),
    "bf16 compiled / bf16": ("bf16 compiled", "bf16", None),
    "CUDA graphs / ours": ("CUDA graphs", "ours", None),
    "compiled, CUDA graphs / ours": ("compiled, CUDA graphs", "ours", None),
}


class Turn(TypedDict):
    """Images a second, and the matrix products' floating-point operations a second, before and after."""

    img_per_s: float
    products: float


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long a piece of work takes, on a GPU until it has finished there."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def plain_normalize(x: Tensor) -> Tensor:
    """The paper's normalization by torch's own function, which divides alpha by the window's size."""
    return F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)


class Grouped(AlexNet):
    """Both towers in one tensor, convolved in groups, on any device."""

    def _parts(self, images: Tensor) -> int:
        return 1


class SideBySide(AlexNet):
    """Each tower in a tensor of its own, on any device."""

    def _parts(self, images: Tensor) -> int:
        return self.local_towers


class PlainFirstConvolution(FirstConvolution):
    """conv1 as one writes it: padded, and a convolution of 11 x 11."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, F.pad(images, (0, 3, 0, 3)))


class PlainAlexNet(Grouped):
    """The model by torch's own functions alone."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.conv1 = PlainFirstConvolution(self.conv1.out_channels)

    def normalize(self, x: Tensor, towers: int) -> Tensor:
        return plain_normalize(x)


MODELS = {"grouped": Grouped, "side by side": SideBySide}


def plain_sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The paper's update by torch's own optimizer, at the learning rate that changes nothing."""
    return torch.optim.SGD(parameters, lr=1e-9, momentum=0.9, weight_decay=0.0005)


def training_step(contestant: str, context: RankContext) -> Callable[[], None]:
    """One training step, again and again on the same batch."""
    images = torch.randn(BATCH, 3, 224, 224, device=context.device) * 50
    labels = torch.randint(1000, (BATCH,), device=context.device)
    options = ModelOptions(
        precision="bf16" if "bf16" in contestant else "fp32",
        compile="compiled" in contestant,
        cuda_graphs="CUDA graphs" in contestant,
        normalization=contestant != "no LRN",
    )
    if contestant in ("plain", "reusing"):
        step = ModelStep(context, 1000, options, PlainAlexNet, plain_sgd)
    else:
        step = ModelStep(context, 1000, options, MODELS.get(contestant, AlexNet))
        images = images.to(memory_format=torch.channels_last)  # as `pipeline.preprocess` makes them
    return functools.partial(step.update, images, labels)


def products_rate(device: torch.device) -> float:
    """Floating-point operations a second of the model's products as plain matrix products of float32, all layers in
    the shares that a step has of them."""
    operations, spent = 0, 0.0
    for positions, reads, outputs, groups in PRODUCTS.values():
        a, b = torch.randn(BATCH * positions, reads, device=device), torch.randn(reads, outputs, device=device)
        multiply = functools.partial(torch.mm, a, b, out=a @ b)
        spent += min(seconds(multiply, device) for _ in range(3)) * groups
        operations += 2 * BATCH * positions * reads * outputs * groups
    return operations / spent


def take_turn(contestant: str, device: torch.device, steps: int) -> Turn:
    """A contestant's turn, in this process."""
    torch.set_num_threads(cores())
    if contestant != "plain" and device.type == "cpu":
        reuse_memory()
    step = training_step(contestant, RankContext(device, 0, 1, unsharded_layout(), cores()))
    for _ in range(3):
        step()
    before = products_rate(device)
    spent = seconds(lambda: [step() for _ in range(steps)], device)
    after = products_rate(device)
    return {"img_per_s": BATCH * steps / spent, "products": (before + after) / 2}


def turn_in_a_process(contestant: str, device: str, steps: int) -> Turn:
    command = [sys.executable, "-m", "bench.studies.step"]
    options = ["--one", contestant, "--steps", str(steps), "--device", device]
    turn: Turn = json.loads(subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True).stdout)
    return turn


def measure_steps(device: str, rounds: int, steps: int) -> dict[str, Any]:
    """The figures of all contestants' steps."""
    names = [name for name in STEPS if ONLY_ON.get(name, device) == device]
    turns = interleaved({name: functools.partial(turn_in_a_process, name, device, steps) for name in names}, rounds)
    rates = {name: [turn["img_per_s"] for turn in turns[name]] for name in names}
    products = {name: [turn["products"] for turn in turns[name]] for name in names}
    # The machine's speed changes by the hour, so a step is compared with the products beside it
    used = {name: [OPERATIONS * rate for rate in rates[name]] for name in names}
    return {
        "img_per_s": {name: summarize(rates[name]) for name in names},
        "products_gflops": {name: summarize(value / 1e9 for value in products[name]) for name in names},
        "share_of_the_products_rate": {name: summarize(ratios(used[name], products[name])) for name in names},
        "ratios": {
            name: summarize(ratios(rates[over], rates[under]))
            for name, (over, under, _) in RATIOS.items()
            if over in rates and under in rates
        },
    }
