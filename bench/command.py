"""`throughput-bench`: images a second of each stage of training beside what the machine could do, and what bounds it.

    read              tar bytes through DALI's reader
    decode            read, and the images decoded whole
    patch             decode, and the central 256 x 256 patch of the scaled image
    pipeline          what training reads: rectangles decoded and scaled to crops, flipped; uint8
    eval              the center crop of the val split
    copy              crops from the host's memory to the GPU's
    feed              the crops exchanged between towers, cast, mean-subtracted and lit, on the device
    exchange          what the ranks tell one another in a step, and nothing else
    forward           the model's logits
    forward+backward  and all gradients
    model             and the update: a whole step on a batch that stays on the device
    train             pipeline, feed and model together, as `train` runs them

All ranks run a stage at once and their images add up; two towers work on the same images, so each counts half of
them. docs/throughput.md has what each limit is, the model behind the verdict, and the JSON's schema.
"""

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from bench import bottleneck, limits, loaders, scaling
from bench.harness.datasets import read_jpegs, repeated, stream, write_images
from bench.harness.machine import describe_machine
from bench.harness.model_step import ModelOptions, ModelStep
from bench.harness.timing import Timed, timed
from bench.limits import Limit
from bench.report import page
from bench.tune import tune_rank
from pipeline.graph import CROP, SIZE
from pipeline.loader import Batch, Loader
from pipeline.preprocess import Preprocess, to_device
from pipeline.settings import Settings
from pipeline.stats import Stats, complete
from shards.atomic import atomic_write
from shards.convert import write_dataset
from shards.dataset import Dataset
from shards.errors import InputError
from shards.processes import cores
from shards.progress import Progress
from shards.remote import Remote
from shards.synthetic import render_folders
from trainer.alexnet import AlexNet
from trainer.cuda_graph import check_cuda_graphs
from trainer.launch import launch
from trainer.model_parallel import ShardGroup, whole
from trainer.precision import check_compiler
from trainer.rank import RankContext

SCHEMA = 3
FIRST = 100  # steps of a resumed run that are held against the ones that follow
CROP_BYTES = 3 * CROP * CROP  # of an image as it travels
Clocked = Callable[..., Timed]  # its name, a step of it and, unless it is a batch, how many images that makes
FED_BYTES = CROP_BYTES + 4 * CROP_BYTES  # that casting it to float32 reads and writes


def bench(
    data: Path | Remote | None,
    json_path: Path | None,
    batch_size: int,
    width: float,
    precision: str,
    compile: bool,
    cuda_graphs: bool,
    parallel: str,
    seconds: float,
    cold: bool,
    with_peers: bool,
    with_scaling: bool,
    report_path: Path | None,
    tune: bool,
    decoding: dict,
    gpus,
    device,
) -> None:
    """Prints each stage's images a second, its limit, and the verdict; writes them to `json_path` as JSON, and to
    `report_path` as a page.

    Args: data: a data set's place, None to render one of 512 images; width, precision, compile, cuda_graphs,
    parallel: of the model, as in `trainer.train.train`; seconds: a stage's time; cold: shards leave the page cache before
    they are read; with_peers, with_scaling: measure what `bench.loaders` and `bench.scaling` do, too; tune: find
    settings, see `bench.tune`, instead; decoding: what is chosen of `pipeline.settings.Settings`, by name.
    Raises: InputError.
    """
    writable(json_path, "--json")
    writable(report_path, "--report")
    if with_scaling and "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError("--scaling starts groups of ranks itself: leave torchrun out, or --scaling")
    if with_scaling and cuda_graphs:
        raise InputError("--scaling measures two ranks, too, and --cuda-graphs holds for one: leave one of them out")
    if cold and isinstance(data, Remote):
        raise InputError("--cold is for shards in a folder, which the kernel keeps: leave it out with a URL")
    model = {"width": width, "precision": precision, "compile": compile, "cuda_graphs": cuda_graphs}
    with tempfile.TemporaryDirectory(prefix="alexnet-bench-") as folder:
        described = "512 rendered images" if data is None else str(data)
        data = data or rendered(Path(folder))
        if tune:
            launch(tune_rank, gpus, device, data, batch_size, decoding, seconds / 3)
            return
        told = Path(folder) / "told.json"
        dataset = Dataset.load(data)
        sample, small = read_jpegs(dataset, limits.IMAGES), Path(folder) / "256"
        if dataset.size is None:
            write_images(sample, small, None, cores(), size=SIZE)
        launch(
            bench_rank, gpus, device, data, small, told, batch_size, model, seconds, cold, decoding, parallel=parallel
        )
        if not told.exists():
            return  # torchrun started this process, and the first one tells
        report = json.loads(told.read_text())
        report["data"]["name"], report["parallel"] = described, parallel
        print(table(report), flush=True)
        if with_peers:
            images = loaders.images_of(dataset, Path(folder))
            report["peers"] = loaders.compare(images, batch_size, seconds, loaders.ROUNDS)
            print(loaders.table(report["peers"]), flush=True)
        if with_scaling:
            how = (batch_size, model, seconds / 2, decoding, device, parallel)
            report["scaling"] = scaling.scale(data, Path(folder), *how)
            print(scaling.table(report["scaling"]))
    if json_path:
        with atomic_write(json_path) as file:
            file.write(json.dumps(report, indent=1).encode() + b"\n")
    if report_path:
        with atomic_write(report_path) as file:
            file.write(page(report).encode())


def writable(path: Path | None, option: str) -> None:
    """Raises InputError when a file cannot come to lie there: before the measuring, not after it."""
    if path and not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path}: there is no such folder; make it first")


def rendered(folder: Path) -> Path:
    """A data set of 512 rendered images."""
    render_folders(folder / "images", classes=10, train=512, val=0, seed=0)
    complete(write_dataset(folder / "images", folder / "shards"))
    return folder / "shards"


def bench_rank(
    context: RankContext,
    data: Path | Remote,
    small: Path,
    told: Path,
    batch_size: int,
    model: dict,
    seconds: float,
    cold: bool,
    decoding: dict,
) -> None:
    """One rank's part: every rank runs every stage, their images add up; the first writes the report to `told`.

    Args: small: where some of the images are laid down at 256, if the set holds originals; model: see `ModelOptions`.
    """
    if model["compile"]:
        check_compiler(context.device)
    if model["cuda_graphs"]:
        check_cuda_graphs(context.device, context.world_size)
    dataset = Dataset.load(data)
    stats = Stats.load(dataset.root)
    settings = context.settings(decoding, dataset.size)
    shared = {"stats": stats, "batch_size": batch_size, **context.loading, **settings._asdict()}
    # What a rank counts for a step: two towers both work on every image of the global batch
    images = batch_size // context.world_size

    sample = read_jpegs(dataset, limits.IMAGES)
    counted = measurements(dataset, settings, context)
    with Progress("measuring", counted, unit="measurements", lines=False, quiet=context.rank > 0) as progress:

        def told_of(name: str, rate: float, unit: str = "img") -> None:
            progress.advance()
            progress.say(f"{name}: {rate:,.0f} {unit}/s")

        def clocked(name: str, step: Callable[[], object], count: int = images) -> Timed:
            one = timed(step, count, seconds, context)
            told_of(name, one.median)
            return one

        stages = {"read": clocked("read", *reading(Loader(dataset, "train", "read", **shared), cold, context))}
        found = limits.measured(sample, dataset, cold, model["precision"], seconds / 2, context, told_of)
        for stage in ("decode", "patch"):
            stages[stage] = clocked(stage, Loader(dataset, "train", stage, **shared).pipeline(0).run)
        stages["pipeline"] = clocked("pipeline", stream(dataset, **shared).__next__)
        evaluated = "val" if "val" in dataset.splits else "train"
        stages["eval"] = clocked("eval", Loader(dataset, evaluated, "center", **shared).pipeline(0).run)
        also = alternatives(dataset, small, shared, context, clocked)
        own = model_stages(dataset, stats, shared, model, seconds, context, clocked, told_of)
        stages |= own.stages
    if context.rank == 0:
        report = {
            "schema": SCHEMA,
            "command": shlex.join(["python", *sys.argv]),
            "machine": describe_machine(context),
            "data": {"samples": dataset.split("train").samples, "bytes_per_picture": image_bytes(dataset)},
            "stored": dataset.size,
            "batch_size": batch_size,
            **model,
            "seconds_per_stage": seconds,
            "cold": cold,
            "decoding": settings._asdict(),
            "peers": [],
            "scaling": [],
        }
        on_gpu = settings.decode_on == "device"
        report |= summary(stages, also, found, own, dataset, on_gpu, context)
        told.write_text(json.dumps(report))


def measurements(dataset: Dataset, settings: Settings, context: RankContext) -> int:
    """How many there will be: limits, stages, alternatives and what ratios need besides."""
    on_gpu, shared = context.device_id is not None, context.world_size > 1
    # Two limits and an alternative more, and a stage where the CPU decodes; a limit, a stage, two to compare with
    return 16 + (dataset.size is None) + on_gpu * (3 + (settings.decode_on == "cpu")) + 4 * shared


def reading(loader: Loader, cold: bool, context: RankContext) -> tuple[Callable[[], object], int]:
    """A step of the stage "read" and the images that it reads: a batch, or cold, an epoch from its beginning."""
    count = loader.batch_size // context.world_size
    if not cold:
        return loader.pipeline(0).run, count

    def epoch() -> None:
        limits.drop(loader.tars)
        context.barrier()  # or one rank would read what another is about to drop
        pipe = loader.pipeline(0)
        for _ in range(loader.batches):
            pipe.run()

    return epoch, loader.batches * count


def alternatives(
    dataset: Dataset, small: Path, shared: dict, context: RankContext, clocked: Clocked
) -> dict[str, Timed]:
    """The training pipeline with one thing changed, by that thing's name: what the verdict's advice rests on."""
    found = {}
    if dataset.size is None:
        squares = Dataset.load(small / "shards")
        images = squares.split("train").samples
        fitting = {**shared, "batch_size": min(shared["batch_size"], images - images % context.world_size)}
        found["256-shards"] = clocked(
            "256-shards", stream(squares, **fitting).__next__, fitting["batch_size"] // context.world_size
        )
    if context.device_id is not None:
        other = "cpu" if shared["decode_on"] == "device" else "device"
        name = f"--decode-on {other}"
        found[name] = clocked(name, stream(dataset, **{**shared, "decode_on": other}).__next__)
    if context.world_size > 1:
        alone = {**shared, "rank": 0, "world_size": 1}
        name = "every rank decodes all"
        found[name] = clocked(name, stream(dataset, **alone).__next__)
    return found


class ModelStages(NamedTuple):
    """The stages that have a model in them; `flops` of an image by stage; bytes `sent` by ranks for an image; and
    `ratios`, by name, as rates (the one, over the other)."""

    stages: dict[str, Timed]
    flops: dict[str, float]
    sent: float
    ratios: dict[str, tuple[float, float]]


def model_stages(
    dataset: Dataset,
    stats: Stats,
    shared: dict,
    model: dict,
    seconds: float,
    context: RankContext,
    clocked: Clocked,
    told_of: Callable[[str, float], None],
) -> ModelStages:
    """Args: model: `ModelOptions`, by name; seconds: a stage's; told_of: hears of what is measured otherwise."""
    options = ModelOptions(**model)
    steps = ModelStep(context, len(dataset.classes), options)
    preprocess = Preprocess(stats, "image", context.device)

    batches = stream(dataset, **shared)
    batch = next(batches)
    batch = batch._replace(images=batch.images.clone())  # DALI's memory is used again
    images, labels = (tensor.clone() for tensor in context.gather_batch(batch, preprocess))

    image_count = len(batch.labels)
    stages = {}
    if context.device_id is not None and not batch.images.is_cuda:
        stages["copy"] = clocked("copy", lambda: to_device(batch.images, context.device))
    stages["feed"] = clocked("feed", lambda: context.gather_batch(batch, preprocess))
    sent = 0.0
    if context.world_size > 1:
        exchange, sent = exchanged(lambda: steps.gradients(images, labels), steps.model, context)
        sent /= image_count
        stages["exchange"] = clocked("exchange", exchange)
    stages["forward"] = clocked("forward", lambda: steps.forward(images))
    stages["forward+backward"] = clocked("forward+backward", lambda: steps.gradients(images, labels))
    stages["model"] = clocked("model", lambda: steps.update(images, labels))
    stages["train"] = clocked("train", lambda: steps.update(*context.gather_batch(next(batches), preprocess)))
    steady = stages["train"].median
    began = resumed(
        dataset, shared, lambda batch: steps.update(*context.gather_batch(batch, preprocess)), steady, seconds, context
    )
    told_of(f"train, first {FIRST} steps resumed", began)
    bare = ModelStep(context, len(dataset.classes), replace(options, normalization=False))
    without = clocked("model without LRN", lambda: bare.update(images, labels))
    ratios = {
        "LRN tax": (stages["model"].median, without.median),
        f"resume: first {FIRST} steps / steady state": (began, steady),
    }
    forward, backward = (flop / image_count for flop in flop_counts(steps.model, images, steps.rng))
    flops = {"forward": forward, "forward+backward": forward + backward, "model": forward + backward}
    if context.world_size > 1:
        one = on_one_device(shared["batch_size"], len(dataset.classes), model, seconds, context)
        told_of("model on one device", one or 0.0)
        name = {2: "two"}.get(context.world_size, str(context.world_size))
        ratios[f"{name} devices / one at equal global batch"] = (stages["model"].median, one)
    return ModelStages(stages, flops, sent, ratios)


def resumed(
    dataset: Dataset, shared: dict, step: Callable[[Batch], object], steady: float, seconds: float, context: RankContext
) -> float:
    """Images a second over the first FIRST steps of a run that goes on in the middle of an epoch, all that its
    loading needs included. Those that do not fit into `seconds` count at the `steady` rate."""
    began, steps, spent = time.perf_counter(), 0, 0.0
    loader = Loader(repeated(dataset), "train", "train", **shared)
    for batch in loader.epoch(0, start=loader.batches // 2):
        step(batch)
        if context.device_id is not None:
            torch.cuda.synchronize()
        steps += 1
        spent = context.all_reduce(time.perf_counter() - began, dist.ReduceOp.MAX)  # of all, so that all stop together
        if steps == FIRST or spent > seconds:
            break
    batch_size = shared["batch_size"]
    return FIRST * batch_size / (spent + (FIRST - steps) * batch_size / steady)


def on_one_device(batch_size: int, classes: int, model: dict, seconds: float, context: RankContext) -> float | None:
    """Images a second of a step on the global batch, by the first rank alone with all cores; None in the others."""
    found = None
    if context.rank == 0:
        alone = replace(context, world_size=1, layout=whole(), threads=context.threads * context.world_size)
        torch.set_num_threads(alone.threads)
        images = torch.randn(batch_size, 3, CROP, CROP, device=context.device)
        labels = torch.randint(classes, (batch_size,), device=context.device)
        steps = ModelStep(alone, classes, ModelOptions(**model))
        found = timed(lambda: steps.update(images, labels), batch_size, seconds, alone).median
        torch.set_num_threads(context.threads)
    context.barrier()
    return found


def flop_counts(model: AlexNet, images: torch.Tensor, rng: torch.Generator) -> tuple[int, int]:
    """This rank's FLOP in products, forwards and backwards; a multiply and an add are two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images, rng)
    # conv1's kernels of 11 x 11 are computed as 12 x 12, whose added zeros are not the model's arithmetic
    computed = sum(counter.get_flop_counts()["AlexNet.conv1"].values())
    conv1 = computed * 11**2 // 12**2
    forward = counter.get_total_flops() - computed + conv1
    # Backwards each layer makes two gradients, a product's cost each, but conv1 none of the images'. (The counter's
    # own figure for the backward of a convolution in groups is too high.)
    return forward, 2 * forward - conv1


def exchanged(step: Callable[[], object], model: AlexNet, context: RankContext) -> tuple[Callable[[], None], float]:
    """A function that repeats what ranks exchange in a step, on tensors of those sizes, and the bytes that it sends."""
    sizes: list[tuple[ShardGroup, str, torch.Size, torch.dtype]] = []

    def noted(towers: ShardGroup, name: str) -> Callable:
        method = getattr(towers, name)

        def note(value):
            like = value if isinstance(value, torch.Tensor) else value[0]
            sizes.append((towers, name, like.shape, like.dtype))
            return method(value)

        return note

    towers = {id(one): one for one in (context.layout.towers, context.layout.dense)}.values()
    names = ("all_gather", "reduce_scatter")
    for one in towers:
        one.__dict__.update({name: noted(one, name) for name in names})
    step()
    for one in towers:
        for name in names:
            del one.__dict__[name]
    calls = []
    for one, name, shape, dtype in sizes:
        value = torch.zeros(shape, dtype=dtype, device=context.device)
        calls.append((getattr(one, name), value if name == "all_gather" else [value] * one.size))
    # What DistributedDataParallel sums: parameters that several ranks hold alike
    group = context.layout.dense.group if context.layout.convolves_its_own else context.layout.replicas.group
    alike = [
        p for name, p in model.named_parameters() if not (context.layout.convolves_its_own and name.startswith("fc"))
    ]
    gradients = torch.zeros(sum(p.numel() for p in alike) if group else 0, device=context.device)

    def again() -> None:
        for call, value in calls:
            call(value)
        if group:
            dist.all_reduce(gradients, group=group)

    before = [one.sent for one in towers]
    again()
    members = dist.get_world_size(group) if group else 1
    summed = 2 * (members - 1) / members * gradients.nbytes
    return again, sum(one.sent - so_far for one, so_far in zip(towers, before, strict=True)) + summed


def summary(
    stages: dict[str, Timed],
    also: dict[str, Timed],
    found: dict[str, Limit],
    own: ModelStages,
    dataset: Dataset,
    on_gpu: bool,
    context: RankContext,
) -> dict:
    """The report's figures: stages with their limits, ratios, prediction, bottleneck.

    Args: also: see `alternatives`; on_gpu: whether images are decoded on the device.
    """
    rates = {name: one.median for name, one in stages.items()}
    others = {name: one.median for name, one in also.items()}
    shared_cores = context.device_id is None
    told = bottleneck.judge(rates, others, shared_cores, context.threads * context.world_size)
    decoder = "nvImageCodec" if on_gpu and not shared_cores else "libjpeg-turbo"
    # For each stage, its limit and how much of the limit's unit an image takes
    works = {
        "read": ("storage", image_bytes(dataset)),
        **{stage: (decoder, 1) for stage in ("decode", "patch", "pipeline", "eval")},
        "copy": ("host to device", CROP_BYTES),
        "feed": ("memory", FED_BYTES),
        "exchange": ("between ranks", own.sent),
        **{stage: ("matmul", flop) for stage, flop in own.flops.items()},
    }

    def row(name: str, one: Timed) -> dict:
        limit, work = works.get(name, (None, None))
        most = found[limit].rate / work if limit else told["predicted_img_per_s"]
        return {
            "name": name,
            "img_per_s": one.median,
            **one.spread,
            "per_device": one.devices,
            "limit": limit or "predicted",
            "limit_img_per_s": most,
            "of_limit": one.median / most,
            "cpu_use": one.cpu,
            "gpu_use": one.gpu,
            "memory_peak_bytes": one.memory,
        }

    raw = found["libjpeg-turbo"]
    ratios = {
        "decode / raw libjpeg-turbo": (rates["decode"], raw.rate),
        "pipeline / raw libjpeg-turbo": (rates["pipeline"], raw.rate),
        "read / cat": (rates["read"], found["storage"].rate / image_bytes(dataset)),
        "train / min(pipeline, model)": (rates["train"], min(rates["pipeline"], rates["model"])),
        "train / predicted": (rates["train"], told["predicted_img_per_s"]),
        "model FLOP/s / matmul FLOP/s": (rates["model"] * own.flops["model"], found["matmul"].rate),
        "CPU-seconds of 1,000 images / raw": (
            1000 * stages["pipeline"].cpu / rates["pipeline"],
            1000 * raw.cpu,
        ),
        **own.ratios,
    }
    if "256-shards" in others:
        ratios["256-shards / originals"] = (others["256-shards"], rates["pipeline"])
    if "every rank decodes all" in others:
        # Each of the ranks made the whole batch, so of what they made together a part is of use
        twice = others["every rank decodes all"]
        ratios["split decode / decoding twice"] = (rates["pipeline"], twice)
    return {
        "limits": {name: limit._asdict() for name, limit in found.items()},
        "stages": [row(name, one) for name, one in stages.items()],
        "alternatives": [{"name": name, "img_per_s": one.median, **one.spread} for name, one in also.items()],
        "flop_per_picture": own.flops["model"],
        "ratios": {
            name: {"ratio": over / under, "over": over, "under": under} for name, (over, under) in ratios.items()
        },
        **told,
    }


def image_bytes(dataset: Dataset) -> int:
    """Mean bytes an image takes in the train split's tars."""
    split = dataset.split("train")
    return split.bytes // split.samples


def compare(first: Path, second: Path) -> str:
    """Two runs' JSON files side by side: each stage's rates, their ratio, and whether they differ by more than noise.
    Raises InputError for a file that is none of ours."""
    one, two = (read_report(path) for path in (first, second))
    lines = [f"A: {first}: {one['data']['name']}", f"B: {second}: {two['data']['name']}"]
    settings = ("batch_size", "width", "cold", "decoding", "parallel", "precision", "compile", "cuda_graphs")
    differing = [
        f"{key}: {one.get(key)} in A, {two.get(key)} in B"
        for key in ("machine", "data", *settings)
        if (one.get(key) or None) != (two.get(key) or None)  # an option that a file is too old for was off
    ]
    lines += differing or ["The same machine, data and settings."]
    lines.append(f"{'img/s':<18}{'A':>10}{'B':>10}{'B / A':>8}  beyond the spread")
    for row in bottleneck.compared(one["stages"], two["stages"]):
        rates = f"{row['a']:>10,.0f}{row['b']:>10,.0f}{row['ratio']:>8.2f}"
        lines.append(f"{row['name']:<18}{rates}  {'yes' if row['differs'] else 'no'}")
    lines.append(f"Bound by: {one['bottleneck']} in A, {two['bottleneck']} in B")
    return "\n".join(lines)


def read_report(path: Path) -> dict:
    """A run's JSON. Raises InputError when it is none, or of a schema that this version does not know."""
    remedy = "give the file that `throughput-bench --json` wrote"
    try:
        report = json.loads(path.read_text())
        schema = report["schema"]
        if schema == SCHEMA:
            bottleneck.compared(report["stages"], report["stages"])
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {remedy}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no run's figures ({error!r}): {remedy}") from None
    if schema != SCHEMA:
        raise InputError(f"{path} is of schema {schema}, and this version's is {SCHEMA}: measure again")
    return report


def table(report: dict) -> str:
    """The figures for people."""
    where = report["machine"]
    kind = where.get("gpu", where["cpu"])
    lines = [
        f"{kind}, {where['cores']} cores, {where['memory_gib']} GiB; {report['data']['name']}",
        f"{'img/s':<18}{'median':>10}{'p10':>10}{'p90':>10}{'of limit':>10}  {'limit':<16}{'CPUs':>6}{'GiB':>6}",
    ]
    for stage in report["stages"]:
        rates = "".join(f"{stage[key]:>10,.0f}" for key in ("img_per_s", "p10", "p90"))
        used = f"{stage['cpu_use']:>6.1f}{stage['memory_peak_bytes'] / 2**30:>6.1f}"
        lines.append(f"{stage['name']:<18}{rates}{stage['of_limit']:>10.0%}  {stage['limit']:<16}{used}")
    lines += [f"{name:<38}{about['ratio']:>8.2f}" for name, about in report["ratios"].items()]
    return "\n".join([*lines, f"Bound by: {report['bottleneck']}", report["verdict"]])
