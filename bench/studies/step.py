"""Speed of the normalization beside torch's, and of a training step beside what the machine's matrix products allow.

The normalization, forward and backward, on the shapes of the paper's two layers in both memory formats:

    torch       F.local_response_norm
    TorchScript ours as it is by default
    compiled    ours under torch.compile

A step, forward, backward and update of the whole model on a batch that stays where it is:

    plain       eager as one writes it: F.local_response_norm, torch.optim.SGD, contiguous memory, glibc as it comes
    reusing     the same, with freed memory kept as `trainer.launch` has it
    ours        as `train` runs it
    no LRN      the same without normalization: over it, the normalization's tax
    compiled    `train --compile`
    bf16        `train --precision bf16`, also with --compile
    CUDA graphs `train --cuda-graphs`, on a GPU

Contestants take turns: in a round each runs once, and each round begins with another one; a ratio is of one round.
Steps run in a process of their own each, for memory is kept by process, and measure the products' speed as they go.
"""

import functools
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F

from bench.harness.machine import describe_machine
from shards.atomic import atomic_write
from shards.processes import cores
from trainer import alexnet, rank
from trainer.lrn import local_response_norm
from trainer.model_parallel import unsharded_layout
from trainer.optimizer import PaperSGD
from trainer.precision import Precision, compile_model
from trainer.train_step import TrainStep

BATCH = 128
SHAPES = {"96 x 55 x 55": (96, 55, 55), "256 x 27 x 27": (256, 27, 27)}
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
STEPS = ("plain", "reusing", "ours", "no LRN", "compiled", "bf16", "bf16 compiled", "CUDA graphs")
# Each layer's forward pass as a matrix product: images x positions, numbers that an output reads, outputs, groups
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
# Of an image's training step: backwards two products a layer, but for the first layer, whose input needs no gradient
OPERATIONS = 2 * (3 * sum(MACS.values()) - MACS["conv1"])
# Ratio, its operands (the one over the other), to reach, then to try for
RATIOS = {
    "ours / plain": ("ours", "plain", 1.7, None),
    "ours / reusing": ("ours", "reusing", None, None),
    "ours / no LRN (the tax)": ("ours", "no LRN", None, None),
    "compiled / ours": ("compiled", "ours", None, None),
    "bf16 / ours": ("bf16", "ours", None, None),
    "bf16 compiled / bf16": ("bf16 compiled", "bf16", None, None),
    "CUDA graphs / ours": ("CUDA graphs", "ours", None, None),
}


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turns(contestants: dict[str, Callable[[], float]], rounds: int, warm: int = 2) -> dict[str, list[float]]:
    """What each contestant returns, a number a round."""
    turns, values = list(contestants.items()), {name: [] for name in contestants}
    for number in range(-warm, rounds):
        first = number % len(turns)
        for name, run in turns[first:] + turns[:first]:
            value = run()
            if number >= 0:
                values[name].append(value)
    return values


def summary(values: list[float]) -> dict:
    low, middle, high = np.percentile(values, (10, 50, 90))
    return {"median": middle, "p10": low, "p90": high, "values": values}


# ---- the normalization


def normalizers(device: torch.device) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    ours = functools.partial(local_response_norm, towers=2)
    return {
        "torch": lambda x: F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0),
        "TorchScript": ours,
        "compiled": compile_model(ours, device),
    }


def measure_normalization(device: torch.device, rounds: int) -> dict:
    found = {}
    for shape_name, shape in SHAPES.items():
        for format_name, memory_format in FORMATS.items():
            torch.compiler.reset()
            x, grad = (torch.randn(BATCH, *shape, device=device).to(memory_format=memory_format) for _ in range(2))
            x = x.relu_().requires_grad_()
            runs = {
                name: functools.partial(one_pass, normalize, x, grad) for name, normalize in normalizers(device).items()
            }
            kept = {name: kept_tensors(normalize, x) for name, normalize in normalizers(device).items()}
            values = in_turns(runs, rounds)
            found[f"{shape_name}, {format_name}"] = {
                "seconds": {name: summary(of) for name, of in values.items()},
                "times_torch": {
                    name: summary([a / b for a, b in zip(values["torch"], values[name], strict=True)])
                    for name in ("TorchScript", "compiled")
                },
                "tensors_kept_for_the_backward": kept,
                **gpu_figures(normalizers(device), x, grad, values, device),
            }
    return found


def one_pass(normalize: Callable, x: torch.Tensor, grad: torch.Tensor) -> float:
    x.grad = None
    return seconds(lambda: normalize(x).backward(grad), x.device)


def kept_tensors(normalize: Callable, x: torch.Tensor) -> int:
    """How many different tensors of the input's size autograd keeps."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t}) or t, lambda t: t):
        normalize(x)
    return sum(tensor.numel() >= x.numel() for tensor in kept.values())


def gpu_figures(normalizers: dict, x: torch.Tensor, grad: torch.Tensor, values: dict, device: torch.device) -> dict:
    """On a GPU: kernels launched, and the bytes of two passes forwards and three backwards over the measured bandwidth
    of a copy, which is two passes."""
    if device.type != "cuda":
        return {}
    launched = {}
    for name, normalize in normalizers.items():
        for _ in range(3):
            normalize(x).backward(grad)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            normalize(x).backward(grad)
            torch.cuda.synchronize()
        launched[name] = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
    copy = np.median([seconds(lambda: grad.clone(), device) for _ in range(20)])
    share = {name: 2.5 * copy / np.median(of) for name, of in values.items()}
    return {"kernels_launched": launched, "share_of_copy_bandwidth": share}


def fuser(device: torch.device) -> dict:
    """Whether TorchScript's own fuser has made one kernel of several operations."""
    x = torch.randn(2, 96, 8, 8, device=device, requires_grad=True)
    for _ in range(3):
        local_response_norm(x, 2).sum().backward()
    graph = str(torch.jit.last_executed_optimized_graph())
    return {
        "fused": "prim::TensorExprGroup" in graph,
        "can_fuse_on_cpu": torch._C._jit_can_fuse_on_cpu(),
        "llvm": torch._C._llvm_enabled(),
    }


# ---- a step


def products_rate(device: torch.device) -> float:
    """Floating-point operations a second of the model's products as plain matrix products of float32, all layers at once
    as a step takes them."""
    operations, took = 0, 0.0
    for positions, reads, outputs, groups in PRODUCTS.values():
        a, b = torch.randn(BATCH * positions, reads, device=device), torch.randn(reads, outputs, device=device)
        out = a @ b
        took += min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(3)) * groups  # noqa: B023
        operations += 2 * BATCH * positions * reads * outputs * groups
    return operations / took


class PlainFirst(torch.nn.Conv2d):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(images, (0, 3, 0, 3)))


def step_of(contestant: str, device: torch.device) -> Callable[[], object]:
    """One training step, again and again on the same batch."""
    variant = alexnet.VARIANTS["paper"]._replace(norm=contestant != "no LRN")
    model = alexnet.AlexNet(variant=variant)
    model.init_weights(seed=0)
    images, labels = torch.randn(BATCH, 3, 224, 224) * 50, torch.randint(1000, (BATCH,))
    if contestant in ("plain", "reusing"):
        alexnet.local_response_norm = lambda x, *_, **__: F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)
        first = PlainFirst(3, 96, 11, 4)
        first.load_state_dict(model.conv1.state_dict())
        model.conv1 = first
        model.to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005)
    else:
        model.to(device)
        # As the feed makes them
        images = images.to(memory_format=torch.channels_last)
        optimizer = PaperSGD(model.parameters(), lr=0.01)
    images, labels = images.to(device), labels.to(device)
    trained = compile_model(model, device) if "compiled" in contestant else model
    precision = Precision("bf16" if "bf16" in contestant else "fp32", device)
    update = TrainStep(
        trained, unsharded_layout(), optimizer, precision, device, seed=0, cuda_graphs=contestant == "CUDA graphs"
    )
    return lambda: update(images, labels, 0)


def one_step(contestant: str, device: torch.device, steps: int) -> dict:
    """Images a second, and the products' operations a second before and after."""
    torch.set_num_threads(cores())
    if contestant != "plain" and device.type == "cpu":
        rank.reuse_memory()
    step = step_of(contestant, device)
    for _ in range(3):
        step()
    before = products_rate(device)
    took = seconds(lambda: [step() for _ in range(steps)], device)
    after = products_rate(device)
    return {"img_per_s": BATCH * steps / took, "products": (before + after) / 2}


def measure_steps(device: str, rounds: int, steps: int) -> dict:
    rates, products = {}, {}
    contestants = [name for name in STEPS if name != "CUDA graphs" or device == "cuda"]

    def run(contestant: str) -> float:
        command = [sys.executable, __file__, "--one", contestant, "--steps", str(steps), "--device", device]
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        products.setdefault(contestant, []).append(told["products"])
        return told["img_per_s"]

    rates = in_turns({name: functools.partial(run, name) for name in contestants}, rounds, warm=0)
    # The machine's speed changes by the hour, so a step is held against the products beside it
    share = {
        name: summary([OPERATIONS * rate / flops for rate, flops in zip(rates[name], products[name], strict=True)])
        for name in contestants
    }
    ratios = {
        name: summary([a / b for a, b in zip(rates[over], rates[under], strict=True)])
        for name, (over, under, *_) in RATIOS.items()
        if over in rates
    }
    return {
        "img_per_s": {name: summary(of) for name, of in rates.items()},
        "products_gflops": {name: summary([value / 1e9 for value in of]) for name, of in products.items()},
        "share_of_the_products_rate": share,
        "ratios": ratios,
    }


def show(report: dict) -> None:
    for layer, found in report["normalisation"].items():
        print(f"{layer}: tensors kept {found['tensors_kept_for_the_backward']}")
        for name, told in found["seconds"].items():
            times = found["times_torch"].get(name, {"median": 1.0})["median"]
            goal = {"TorchScript": "to reach 3", "compiled": "to reach 8"}.get(name, "")
            print(f"  {name:<14}{1e3 * told['median']:>8.0f} ms{times:>8.2f} x torch  {goal}")
        for figure in ("kernels_launched", "share_of_copy_bandwidth"):
            if figure in found:
                print(f"  {figure}: {found[figure]}")
    print(f"TorchScript's fuser: {report['fuser']}")
    steps = report["step"]
    print(f"step, batch {BATCH}: {'img/s':>14}{'of what the products allow':>30}")
    for name, told in steps["img_per_s"].items():
        share = steps["share_of_the_products_rate"][name]["median"]
        print(f"  {name:<24}{told['median']:>9.1f}{share:>20.2f}{'  to reach 0.45, then 0.6' * (name == 'ours')}")
    for name, told in steps["ratios"].items():
        goal = RATIOS[name][2]
        print(f"  {name:<24}{told['median']:>9.2f}{f'  to reach {goal}' if goal else ''}")


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--steps", default=3, show_default=True, help="Of each contestant in each round.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures there.")
@click.option("--one", type=click.Choice(STEPS), hidden=True, help="A contestant's turn, told as JSON.")
def main(rounds: int, steps: int, device: str, json_path: Path | None, one: str | None) -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    where = torch.device(device, 0) if device == "cuda" else torch.device("cpu")
    if one:
        print(json.dumps(one_step(one, where, steps)))
        return
    context = rank.RankContext(where, 0, 1, unsharded_layout(), cores())
    report = {
        "schema": 1,
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(context),
        "batch_size": BATCH,
    }
    report["step"] = measure_steps(device, rounds, steps)
    # After the steps, whose processes must not find the memory kept here
    torch.set_num_threads(cores())
    if device == "cpu":
        rank.reuse_memory()
    report["normalisation"], report["fuser"] = measure_normalization(where, rounds), fuser(where)
    show(report)
    if json_path:
        with atomic_write(json_path) as file:
            file.write(json.dumps(report, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
