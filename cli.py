"""AlexNet (2012) on DALI: image folders to tar shards, shards to a two-tower model, and what bounds its speed."""

import functools
import json
from pathlib import Path
from typing import ClassVar

import click

from shards.errors import InputError

# The heavy imports (torch, DALI) stand inside the commands that need them, so that --help answers at once.

FOLDER = click.Path(path_type=Path, file_okay=False)
GPUS = click.option(
    "--gpus", type=int, help="Devices: 1 holds both towers, 2 one each, 8 four pairs.  [default: 1, or torchrun's]"
)
PARALLEL = click.option(
    "--parallel",
    type=click.Choice(["towers", "data", "hybrid"]),
    default="towers",
    show_default=True,
    help="Devices hold a tower each, the whole model each, or all convolutions and a share of the dense layers.",
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of a step.",
)
COMPILE = click.option(
    "--compile", is_flag=True, help="Have torch.compile fuse the step.  [default: TorchScript, the LRN alone]"
)
CUDA_GRAPHS = click.option(
    "--cuda-graphs", is_flag=True, help="Record the step's kernels once and launch them together: one GPU."
)
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="auto: CUDA devices where there are any, else CPU processes.",
)

WORKERS = click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one a core]")


DECODING = {
    "threads": click.option(
        "--threads", type=click.IntRange(1), help="DALI's CPU threads of a rank.  [default: tuned, or one a core]"
    ),
    "prefetch": click.option(
        "--prefetch", type=click.IntRange(1), help="Batches that DALI works ahead.  [default: tuned, or 2]"
    ),
    "affinity": click.option(
        "--affinity/--no-affinity", default=None, help="Bind DALI's threads to cores.  [default: tuned, or not]"
    ),
    "decode_on": click.option(
        "--decode-on",
        type=click.Choice(["device", "cpu"]),
        help="Where images are decoded.  [default: tuned, or the model's device]",
    ),
    "hw_decoder_load": click.option(
        "--hw-decoder-load",
        type=click.FloatRange(0, 1),
        help="Share of JPEGs for a GPU's hardware decoder.  [default: tuned, or 0.65]",
    ),
}


def decoding(command):
    """DALI's settings as options, which the command takes as one dict; None is what `throughput-bench --tune` found."""

    @functools.wraps(command)
    def packed(**options):
        return command(decoding={name: options.pop(name) for name in DECODING}, **options)

    for option in reversed(DECODING.values()):
        packed = option(packed)
    return packed


class Size(click.ParamType):
    """A number of bytes, with or without a unit: 1000, 64MiB, 1GB."""

    name = "bytes"
    units: ClassVar = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

    def convert(self, value, param, ctx):
        if isinstance(value, int):
            return value
        digits = value.rstrip("BKMGIbkmgi ")
        unit = value[len(digits) :].strip().upper()
        try:
            size = int(float(digits) * self.units[unit])
        except (ValueError, KeyError):
            self.fail(f"{value!r} is no size: write it like 256MiB", param, ctx)
        if size < 1:
            self.fail(f"{value!r} is no size: it has to be at least one byte", param, ctx)
        return size


class Epochs(click.ParamType):
    """Epoch numbers with commas between them; the empty text is none; or the word plateau."""

    name = "epochs"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple) or value == "plateau":
            return value
        try:
            return tuple(int(number) for number in value.split(",") if number.strip())
        except ValueError:
            self.fail(f"{value!r} is no list of epochs: write it like 25,51,79, or plateau", param, ctx)


class ModelStep(click.ParamType):
    """The first and the last of some steps: 10-20."""

    name = "first-last"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        first, _, last = value.partition("-")
        if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
            self.fail(f"{value!r} names no steps: write it like 10-20", param, ctx)
        return int(first), int(last)


class Location(click.ParamType):
    """A data set's folder, or its URL."""

    name = "folder or URL"

    def convert(self, value, param, ctx):
        from shards.remote import is_url

        return value if isinstance(value, str) and is_url(value) else FOLDER.convert(value, param, ctx)


def located(command):
    """--cache and --cache-size, which the command takes within its `data`: a Path, or a `shards.remote.Remote`."""

    @click.option(
        "--cache", type=FOLDER, help="Where shards of a URL go.  [default: ~/.cache/alexnet-dali; none for s3://]"
    )
    @click.option("--cache-size", type=Size(), help="Of these shards; what was used last stays.  [default: 64GiB]")
    @functools.wraps(command)
    def packed(data, cache, cache_size, **options):
        from shards.remote import Remote

        if isinstance(data, str):
            data = Remote(data, cache, cache_size)
        elif cache or cache_size:
            raise InputError("--cache and --cache-size are for a data set at a URL: leave them out")
        return command(data=data, **options)

    return packed


class Verbs(click.Group):
    """Shows an InputError as the one line that it is."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=Verbs, context_settings={"max_content_width": 110}, help=__doc__)
def main():
    pass


@main.command()
@click.option(
    "--imagenet-root", "root", type=FOLDER, required=True, help="Where the images are, in one of five layouts."
)
@click.option("--out", type=FOLDER, required=True, help="Where the shards go.")
@click.option(
    "--source",
    "kind",
    type=click.Choice(["auto", "folders", "archives", "kaggle", "parquet", "webdataset"]),
    default="auto",
    show_default=True,
    help="The layout: class folders, the official tars, Kaggle's tree, Hugging Face's parquet, others' tars.",
)
@click.option("--size", type=click.IntRange(256), help="Store images SIZE x SIZE pixels; paper: 256.  [default: as is]")
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Of re-encoded JPEGs.")
@click.option("--max-pixels", type=click.IntRange(1), help="Scale larger images down to so many.  [default: as is]")
@click.option("--shard-size", type=Size(), default="256MiB", show_default=True, help="Largest tar, about.")
@WORKERS
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the train split's order.")
@click.option("--strict", is_flag=True, help="Fail when an image cannot be read, instead of leaving it out.")
def shard(root, out, workers, **options):
    """Turn ImageNet into WebDataset shards, DALI indices, dataset.json and stats.npz.

    A conversion that was interrupted or killed is continued by the same command.
    """
    from shards.convert import write_dataset

    try:
        dataset = write_dataset(root, out, workers=workers, **options)
    except KeyboardInterrupt:
        raise click.ClickException(f"interrupted: the same command continues with {out}") from None
    from pipeline.stats import complete  # brings torch and DALI, which would lie idle while shards are written

    complete(dataset, workers)
    for name, split in dataset.splits.items():
        changed = "".join(f", {count} {kind} encoded anew" for kind, count in split.changed.items())
        if split.scaled_down:
            changed += f", {split.scaled_down} scaled down"
        left_out = f"{len(split.left_out)} left out"
        click.echo(f"{name}: {split.samples} samples in {len(split.shards)} shards, {left_out}{changed}")
        for left in split.left_out[:10]:
            click.echo(f"  left out: {left.file}: {left.reason}")
        if len(split.left_out) > 10:
            click.echo(f"  and {len(split.left_out) - 10} more: see {out / 'dataset.json'}")
    click.echo(f"Data set written to {out}")


@main.command()
@click.argument("data", type=FOLDER)
@WORKERS
def index(data, workers):
    """Add what the tars in DATA lack: dataset.json, .idx files, stats.npz. No tar is written to.

    Makes a data set of WebDataset tars that others made, as they are.
    """
    from pipeline.stats import complete
    from shards.dataset import Dataset
    from shards.describe import describe_tars

    described = (data / "dataset.json").exists() or not any(data.glob("*.tar"))
    dataset = Dataset.load(data) if described else describe_tars(data, workers)
    complete(dataset, workers)
    for name, split in dataset.splits.items():
        for sample in split.quarantined:
            click.echo(f"  left out of {name}: {sample.shard}: {sample.key}: {sample.reason}")
    click.echo(f"{data} has dataset.json, an index for each shard, and stats.npz")


@main.command()
@click.argument("data", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--threads", type=click.IntRange(1), help="Of DALI.  [default: one a core]")
def stats(data, as_json, threads):
    """Compute the mean image and color components of the train split in DATA anew, into stats.npz."""
    from pipeline.stats import compute
    from shards.dataset import Dataset
    from shards.processes import cores

    made = compute(Dataset.load(data), threads or cores())
    made.save(data)
    click.echo(json.dumps(made.described(), indent=1) if as_json else made.table())


@main.command()
@click.argument("data", type=Location())
@located
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The PNG file to write.")
@click.option("--images", "--pictures", type=click.IntRange(1, 64), default=8, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order and the draws.")
def preview(data, out, images, seed):
    """Show what the model is fed of DATA: images decoded, cropped, flipped and lit, and ten test crops."""
    from pipeline.preview import sheet
    from pipeline.stats import Stats
    from shards.dataset import Dataset

    dataset = Dataset.load(data)
    sheet(dataset, Stats.load(dataset.root), images, seed).save(out, "PNG")
    click.echo(f"Written to {out}")


@main.command()
@click.argument("data", type=FOLDER)
@click.option("--decode", is_flag=True, help="Decode every image wholly, too.")
@click.option("--quarantine", is_flag=True, help="Take bad samples out of the .idx files; no tar is written to.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@WORKERS
def verify(data, decode, quarantine, as_json, workers):
    """Prove the data set in DATA whole, or name each bad sample and exit with 1."""
    from shards.verify import show, verify

    report = verify(data, decode=decode, quarantine=quarantine, workers=workers)
    click.echo(json.dumps(report.described(), indent=1) if as_json else show(report, data, quarantine))
    raise SystemExit(0 if report.whole else 1)


@main.command()
@click.argument("data", type=Location())
@located
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(data, as_json):
    """Show what the data set in DATA holds: samples, sizes, classes, what was left out."""
    from shards.dataset import Dataset
    from shards.info import describe, table

    about = describe(Dataset.load(data))
    click.echo(json.dumps(about, indent=1) if as_json else table(about))


@main.command()
@click.option("--data", type=Location(), required=True, help="A folder made by `shard`, or the URL of one.")
@located
@click.option("--out", type=FOLDER, required=True, help="RUN: gets config.json, metrics.jsonl and checkpoints.")
@GPUS
@PARALLEL
@DEVICE
@click.option("--epochs", type=click.IntRange(1), help="How long.  [default: 90, as in the paper]")
@click.option("--steps", type=click.IntRange(1), help="How long, in updates, instead of --epochs.")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Images, over all devices.")
@click.option(
    "--recipe",
    type=click.Choice(["paper", "large-batch"]),
    default="paper",
    show_default=True,
    help="large-batch: --lr in proportion to the batch, warm-up, LARS.",
)
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=0.01, show_default=True, help="Learning rate.")
@click.option(
    "--lr-steps",
    type=Epochs(),
    default="25,51,79",
    show_default=True,
    help="Epochs at which it is divided by 10, or plateau: as the validation error stops improving, three times.",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Evaluations that make a plateau.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, order, draws and dropout."
)
@click.option(
    "--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.5, show_default=True, help="Share dropped."
)
@click.option("--width", type=click.FloatRange(0.03, 1), default=1.0, show_default=True, help="Share of kernels.")
@click.option(
    "--variant",
    type=click.Choice(["paper", "release-2012", "one-tower"]),
    default="paper",
    show_default=True,
    help="The model: the paper's, that of the code of 2012, or the paper's smaller one to compare with (section 3.2).",
)
@click.option("--activation", type=click.Choice(["relu", "tanh"]), default="relu", show_default=True)
@click.option("--lrn/--no-lrn", "norm", default=True, help="Local response normalization.  [default: with it]")
@click.option(
    "--pool", type=click.Choice(["3/2", "2/2"]), default="3/2", show_default=True, help="Pooling: width/distance."
)
@click.option("--lighting/--no-lighting", default=True, help="Vary the training images' colors.  [default: do]")
@PRECISION
@COMPILE
@CUDA_GRAPHS
@click.option(
    "--mean",
    type=click.Choice(["image", "channel"]),
    default="image",
    show_default=True,
    help="What is subtracted: the mean image's center, as in 2012, or one number a channel.",
)
@click.option(
    "--max-bad",
    type=click.FloatRange(0, 1),
    default=0.001,
    show_default=True,
    help="Share of samples that may fail to decode, one at least; they are left out and named.",
)
@click.option(
    "--resume",
    type=click.Choice(["never", "auto"]),
    default="never",
    show_default=True,
    help="auto: from RUN's newest checkpoint.",
)
@click.option("--checkpoint-every", type=click.IntRange(1), default=1000, show_default=True, help="Steps.")
@click.option("--keep", type=click.IntRange(1), default=3, show_default=True, help="Checkpoints, besides the best.")
@click.option(
    "--log-every", type=click.IntRange(1), default=10, show_default=True, help="Steps; the first and last always."
)
@click.option(
    "--eval-every", type=click.IntRange(1), default=1, show_default=True, help="Epochs; the last step always."
)
@click.option(
    "--final-crops",
    type=click.Choice(["1", "10"]),
    default="1",
    show_default=True,
    help="10: the paper's test at the end.",
)
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files, too, into RUN.")
@click.option(
    "--profile", type=ModelStep(), metavar="FIRST-LAST", help="Trace these steps into RUN, for chrome://tracing."
)
@decoding
def train(resume, final_crops, **options):
    """Train AlexNet: --gpus 2 is the paper's two towers, one a device.

    SIGTERM, SIGUSR1 and Ctrl-C end it after the step that is under way, with a checkpoint and exit code 75.
    """
    from trainer import train as training
    from trainer.preemption import EXIT_PREEMPTED, Stopped

    try:
        training.train(resume=resume == "auto", final_crops=int(final_crops), **options)
    except Stopped:
        raise SystemExit(EXIT_PREEMPTED) from None


@main.command("eval")
@click.option("--data", type=Location(), required=True, help="A folder made by `shard`, or the URL of one.")
@located
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), required=True, help="A run's folder (its newest) or a file."
)
@click.option(
    "--crops", type=click.Choice(["1", "10"]), default="1", show_default=True, help="Center, or the paper's ten."
)
@click.option("--split", default="val", show_default=True, help="Which split.")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Images, over all devices.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@GPUS
@DEVICE
@decoding
def evaluate(data, checkpoint, crops, split, batch_size, decoding, as_json, gpus, device):
    """Top-1 and top-5 error of a checkpoint; every sample counts exactly once."""
    from trainer.evaluate import evaluate_run
    from trainer.launch import launch

    launch(evaluate_run, gpus, device, data, checkpoint, split, int(crops), batch_size, decoding, as_json)


@main.command("throughput-bench")
@click.option("--data", type=Location(), help="A folder made by `shard`, or its URL.  [default: a rendered set]")
@located
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures there.")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Images, over all devices.")
@click.option("--width", type=click.FloatRange(0.03, 1), default=1.0, show_default=True, help="Share of kernels.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=3.0, show_default=True, help="A stage's time."
)
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Show two runs' --json files side by side, instead.",
)
@click.option("--cold", is_flag=True, help="Have the kernel forget the shards before each reading.")
@click.option("--peers", "with_peers", is_flag=True, help="Measure other loaders on the same images, too.")
@click.option("--scaling", "with_scaling", is_flag=True, help="Measure 1 to N threads and ranks, batches, sizes, too.")
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write them as a page of HTML there.",
)
@click.option("--tune", is_flag=True, help="Find DALI's fastest settings instead, for training to pick up.")
@PRECISION
@COMPILE
@CUDA_GRAPHS
@GPUS
@PARALLEL
@DEVICE
@decoding
def throughput_bench(compare, width, precision, compile, cuda_graphs, **options):
    """Images per second of each stage, the machine's limit beside it, and which of them bounds training."""
    if compare:
        from bench.compare import compare as compare_runs

        click.echo(compare_runs(*compare))
        return
    from bench import command
    from bench.config import BenchConfig
    from bench.harness.model_step import ModelOptions

    command.run(BenchConfig(model=ModelOptions(width, precision, compile, cuda_graphs), **options))


@main.command()
@click.option("--out", type=FOLDER, default="demo", show_default=True, help="Where everything goes.")
@click.option("--short", is_flag=True, help="Half a minute of training instead of a couple.")
@DEVICE
def demo(out, short, device):
    """Render images, shard them, train two towers on them, and show what they learned."""
    from demo import run

    run(out, short, device)


if __name__ == "__main__":
    main()
