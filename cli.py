"""AlexNet (2012) on DALI: image folders to tar shards, shards to a two-tower model, and what bounds its speed."""

import functools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

import click

from paper.registry import SEEDS, STUDIES, table
from shards.atomic import make_output_folder
from shards.console import drop_what_is_unread
from shards.errors import InputError
from shards.storage import is_url
from trainer.config import (
    DECODING,
    GROUPS,
    HINTS,
    OPTIONS,
    TrainConfig,
    check_towers,
    default_of,
    flag_of,
    parse_bytes,
    read_options,
)

__version__ = "0.1.0"
STUDIES_HELP = f"\b\n{table()}"

# The heavy imports (torch, DALI) stand inside the commands that need them, after the checks that need neither, so that
# --help and a wrong folder are answered at once.

Command = TypeVar("Command", bound=Callable[..., Any])
FILE = click.Path(path_type=Path, dir_okay=False)


def named(value: Any, param: click.Parameter | None) -> str:
    """A path in a message: with its option, if it is not an argument."""
    return f"{param.opts[0]} {value}" if isinstance(param, click.Option) else str(value)


class Folder(click.ParamType[Any]):
    """A folder on this machine, which need not exist; a Path. Args: at_url: what a URL becomes, None to refuse it."""

    name = "folder"

    def __init__(self, at_url: Callable[[str], Any] | None = None):
        self.at_url = at_url

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_url(str(value)):
            if self.at_url:
                return self.at_url(str(value))
            raise InputError(
                f"{named(value, param)} is a URL: give a folder of this machine, such as a copy of that one"
            )
        path = Path(value)
        if path.exists() and not path.is_dir():
            raise InputError(f"{named(path, param)} is a file: give a folder")
        return path


FOLDER = Folder()


class FiniteRange(click.FloatRange):
    """A number between limits. click's own takes NaN, which is neither below the one nor above the other."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def image_source(url: str) -> Any:
    """A `shards.storage.Storage` to read images from."""
    from shards.sources.copy_url import source_at

    return source_at(url)


def upload_target(url: str) -> Any:
    """A `shards.storage.Storage` to write to."""
    from shards.upload import target

    return target(url)


class OutputFile(click.ParamType[Path]):
    """A file to write, checked before any work is done. Args: suffixes: that its name may end in; () for any.

    Its file is later renamed into place, so what counts is the folder; and a device or a pipe would be replaced.
    """

    name = "file"

    def __init__(self, *suffixes: str):
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        name = named(path, param)
        if self.suffixes and path.suffix.lower() not in self.suffixes:
            raise InputError(f"{name}: give a name that ends in {', '.join(self.suffixes)}")
        if path.exists() and (not path.is_file() or path.is_symlink()):
            raise InputError(f"{name} is not a plain file: choose another name")
        folder = path.absolute().parent
        if not folder.is_dir():
            raise InputError(f"{name}: there is no such folder as {folder}: make it first, or choose another")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(f"{name} cannot be written: {error.strerror}: choose another folder") from None
        return path


class Parsed(click.ParamType[Any]):
    """A type of our own, by the function that reads it from text."""

    def __init__(self, parse: Callable[[str], Any], name: str):
        self.parse, self.name = parse, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


BYTES = Parsed(parse_bytes, "bytes")


def open_standard_streams() -> None:
    """Gives a process that was started without one (`2>&-`) a stream to nowhere; otherwise the next file to be opened
    would take its number, and get what libraries write there."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number that is free
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - to the end


def use_utf8() -> None:
    """Begins again in Python's UTF-8 mode where file names and text would be read in the locale's encoding: the same
    folders are to be the same classes everywhere."""
    if sys.getfilesystemencoding() == "utf-8":
        return
    if "utf8" in sys._xoptions:
        raise click.ClickException("names of files have to be read as UTF-8: leave -X utf8=0 out")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


class Commands(click.Group):
    """Shows an InputError as the one line that it is."""

    def make_context(self, *args: Any, **keywords: Any) -> click.Context:
        open_standard_streams()
        use_utf8()
        if sys.flags.optimize > 1:
            remedy = "leave -OO and PYTHONOPTIMIZE=2 out; -O works"
            raise click.ClickException(f"without docstrings DALI does not start, and --help says nothing: {remedy}")
        return super().make_context(*args, **keywords)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise click.ClickException(str(error)) from None


class GroupedCommand(click.Command):
    """A command whose help lists its options of training under the headings of `trainer.config.GROUPS`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record and param.name:
                heading = OPTIONS[param.name].group if param.name in OPTIONS else "Other options"
                rows.setdefault(heading, []).append(record)
        for heading in (*GROUPS, "Other options"):
            if heading in rows:
                with formatter.section(heading):
                    formatter.write_dl(rows[heading])


def training_type(name: str) -> Any:
    """The click type of an option of TrainConfig."""
    about, hint = OPTIONS[name], HINTS[name]
    if about.parse:
        return Parsed(about.parse, name)
    if about.choices:
        return click.Choice(about.choices)
    if hint in (bool, bool | None):
        return bool
    if hint in (Path, Path | None):
        return click.Path(path_type=Path) if "FILE" in (about.metavar or "") else FOLDER
    if hint in (int, int | None):
        return int if about.minimum is None else click.IntRange(int(about.minimum))
    if hint is float or hint == float | None:
        lowest = about.minimum if about.above is None else about.above
        highest = about.maximum if about.below is None else about.below
        return FiniteRange(lowest, highest, min_open=about.above is not None, max_open=about.below is not None)
    return str


def training_option(name: str, **changed: Any) -> Callable[[Command], Command]:
    """An option of TrainConfig as click takes it. Args: changed: what this command has otherwise, in click's words."""
    about, default = OPTIONS[name], default_of(name)
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    help = about.help + (f"  [default: {about.default_help}]" if about.default_help else "")
    type = training_type(name)
    number = (
        "N" if isinstance(type, click.IntRange) or type is int else "X" if isinstance(type, click.FloatRange) else ""
    )
    keywords: dict[str, Any] = {
        "type": type,
        "help": help,
        "metavar": about.metavar or about.unit.upper() or number or None,
    }
    if default is MISSING:
        keywords["required"] = True
    else:
        keywords |= {"default": default, "show_default": default is not None}
    return click.option(flag_of(name), name, **{**keywords, **changed})


def training_options(*names: str) -> Callable[[Command], Command]:
    """These options of TrainConfig, in their order."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = training_option(name)(command)
        return command

    return decorate


def decoding(command: Callable[..., Any]) -> Callable[..., Any]:
    """DALI's settings as options, which the command takes as one dict; None is what `throughput-bench --tune` chose."""

    @functools.wraps(command)
    def packed(**options: Any) -> Any:
        return command(decoding={name: options.pop(name) for name in DECODING}, **options)

    return training_options(*DECODING)(packed)


def located(command: Callable[..., Any]) -> Callable[..., Any]:
    """--cache and --cache-size, which the command takes within its `data`: a Path, or a `shards.remote.Remote`."""

    @functools.wraps(command)
    def packed(data: str | None, cache: Path | None, cache_size: int | None, **options: Any) -> Any:
        from shards.remote import locate

        where = locate(data or "", cache, cache_size)  # which refuses a cache without a URL, and so without data
        return command(data=None if data is None else where, **options)

    return training_options("cache", "cache_size")(packed)


WORKERS = click.option("--workers", type=click.IntRange(1), help="The number of processes.  [default: one a core]")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
DATA = click.argument("data", metavar="FOLDER|URL")


CHECKPOINT = click.option(
    "--checkpoint", type=click.Path(path_type=Path), required=True, help="A run's folder, or a checkpoint's file."
)
WHICH = click.option(
    "--which",
    type=click.Choice(("newest", "best")),
    default="newest",
    show_default=True,
    help="Which checkpoint of a folder: the newest, or the best by top-1 error on val.",
)


def crops_option(default: int) -> Callable[[Command], Command]:
    return click.option(
        "--crops",
        type=click.Choice((1, 10)),
        default=default,
        show_default=True,
        help="The center crop, or the paper's ten crops.",
    )


def ready(data: Any) -> tuple[Any, Any]:
    """A data set (a folder or a `shards.remote.Remote`) and its statistics, read before torch and DALI are imported,
    which takes seconds. Raises InputError when either is missing or damaged."""
    from pipeline.stats import Stats
    from shards.dataset import Dataset

    dataset = Dataset.load(data)
    return dataset, Stats.load(dataset.root)


def show_json_or(as_json: bool, values: Mapping[str, Any], text: str) -> None:
    click.echo(json.dumps(values, indent=1) if as_json else text)


@click.group(
    cls=Commands, context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]}, help=__doc__
)
@click.version_option(__version__, prog_name="alexnet-dali")
def main() -> None:
    drop_what_is_unread()


def _one_root(argument: Any, option: Any) -> Any:
    """The folder or URL of the images, given as an argument or as --imagenet-root."""
    root = argument or option
    if root is None or (argument and option):
        raise InputError("give the folder of the images once: `shard ROOT --out DIR`, or --imagenet-root ROOT")
    return root


@main.command()
@click.argument("folder", metavar="[ROOT]", type=Folder(at_url=image_source), required=False)
@click.option(
    "--imagenet-root",
    "root",
    type=Folder(at_url=image_source),
    metavar="FOLDER|URL",
    help="The folder of the images, ROOT, in one of five layouts; or its URL, as s3://BUCKET/IMAGES, which is copied.",
)
@click.option(
    "--out",
    type=Folder(at_url=upload_target),
    metavar="FOLDER|URL",
    required=True,
    help="The folder that gets the shards, or a URL, as s3://BUCKET/SET: each is uploaded once it is finished.",
)
@click.option(
    "--cache", type=FOLDER, help="Where shards lie until they are uploaded to a URL.  [default: in the user's cache]"
)
@click.option(
    "--source",
    "kind",
    type=click.Choice(["auto", "folders", "archives", "kaggle", "parquet", "webdataset"]),
    default="auto",
    show_default=True,
    help="The layout: class folders, the official tars, Kaggle's tree, Hugging Face's parquet, or WebDataset tars.",
)
@click.option(
    "--size",
    type=click.IntRange(256),
    help="Store squares of SIZE x SIZE pixels; the paper's are 256.  [default: the images' own size]",
)
@click.option(
    "--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="The quality of re-encoded JPEGs."
)
@click.option(
    "--max-pixels", type=click.IntRange(1), help="Scale larger images down to this many.  [default: keep them]"
)
@click.option("--shard-size", type=BYTES, default="256MiB", show_default=True, help="The largest tar, about.")
@WORKERS
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seeds the order of the train split, and --val-share.",
)
@click.option(
    "--val-share",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Draw this share of each class of the training images for validation, where ROOT has none for it.",
)
@click.option("--strict", is_flag=True, help="Fail when an image cannot be read, or anything in ROOT is not taken.")
@click.option(
    "--label-key",
    metavar="KEY",
    help="Where labels are: a column of parquet files; a field of .json, or an extension, in WebDataset tars."
    "  [default: label; cls]",
)
@click.option(
    "--part",
    metavar="I/N",
    help="Write one of N parts, such as 3/16 in a Slurm array; when all are written, `index DIR` joins them.",
)
@click.option(
    "--cluster",
    metavar="dask://HOST:PORT",
    help="Have the workers of a Dask scheduler write the shards; they need ROOT and DIR under the same names.",
)
def shard(
    folder: Any,
    root: Any,
    out: Any,
    cache: Path | None,
    workers: int | None,
    part: str | None,
    cluster: str | None,
    **options: Any,
) -> None:
    """Turn ImageNet into WebDataset shards with DALI indices.

    Writes tars, .idx files, dataset.json and stats.npz. A conversion that was interrupted or killed is continued by the
    same command.
    """
    from shards.cluster import parse_cluster
    from shards.convert import ConvertOptions, write_dataset
    from shards.parts import parse_part, write_part
    from shards.upload import upload_part, uploading

    if part and cluster:
        raise InputError("--part and --cluster both divide the work: leave one of the two out")
    at_url = not isinstance(out, Path)
    if cache and not at_url:
        raise InputError("--cache is for an --out at a URL: leave it out")
    root = _one_root(folder, root)
    if part and not isinstance(root, Path):
        raise InputError(f"--part: each part would copy {root}: copy it to a folder once, and give that as ROOT")
    chosen = ConvertOptions(workers=workers, cluster=cluster and parse_cluster(cluster), **options)
    try:
        if part:
            own = parse_part(part)
            click.echo(upload_part(root, out, chosen, own, cache) if at_url else write_part(root, out, chosen, own))
            return
        converted = uploading(root, out, chosen, cache) if at_url else nullcontext(write_dataset(root, out, chosen))
        with converted as dataset:
            from pipeline.compute_stats import complete

            complete(dataset, workers)
    except KeyboardInterrupt:
        raise click.ClickException(f"interrupted: the same command continues with {out}") from None
    from shards.info import written

    click.echo(written(dataset))


@main.command()
@click.argument("data", type=FOLDER)
@WORKERS
@click.option(
    "--label-key",
    metavar="KEY",
    help="With cls the class numbers in .cls count, also where keys or .json contradict them.",
)
@click.option(
    "--strict", is_flag=True, help="Fail when a sample cannot be used, or anything beside the tars is not read."
)
def index(data: Path, workers: int | None, label_key: str | None, strict: bool) -> None:
    """Add what tars lack: dataset.json, .idx files, stats.npz.

    Makes a data set of WebDataset tars in DATA that others made, as they are, or of the parts that `shard --part` wrote
    there. No tar is written to.
    """
    from shards.describe import load_or_describe
    from shards.parts import holds_parts, join_parts

    if holds_parts(data):
        from shards.info import written

        dataset = join_parts(data, strict)
        click.echo(written(dataset))
    else:
        dataset = load_or_describe(data, workers, label_key, strict)
    from pipeline.compute_stats import complete

    complete(dataset, workers)
    for name, split in dataset.splits.items():
        for sample in split.quarantined:
            click.echo(f"  not in the index of {name}: {sample.shard}: {sample.key}: {sample.reason}")
    stats = " and stats.npz" if "train" in dataset.splits else ""
    click.echo(f"{data} has dataset.json, an index for each shard{stats}")


@main.command()
@click.argument("data", type=FOLDER)
@JSON
@click.option("--threads", type=click.IntRange(1), help="DALI's CPU threads.  [default: one a core]")
def stats(data: Path, as_json: bool, threads: int | None) -> None:
    """Compute the mean image and color components again.

    They are those of the train split in DATA, and go to its stats.npz.
    """
    from shards.dataset import Dataset
    from shards.processes import cores

    dataset = Dataset.load(data)
    dataset.tars("train")
    from pipeline.compute_stats import compute_stats

    computed = compute_stats(dataset, threads or cores())
    computed.save(data)
    show_json_or(as_json, computed.described(), computed.table())


@main.command()
@DATA
@located
@click.option(
    "--out",
    type=OutputFile(".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"),
    required=True,
    help="The image to write, in the format that its name ends in: .png, .jpg, .webp, .tif or .bmp.",
)
@click.option(
    "--images",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="The number of images.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seeds the order and the augmentation of train.",
)
@click.option(
    "--split",
    default="train",
    show_default=True,
    help="The split: train as in training, val as in testing, by the center crop.",
)
def preview(data: Any, out: Path, images: int, seed: int, split: str) -> None:
    """Draw what the model is fed, and the ten test crops."""
    from pipeline.stats import Stats
    from shards.dataset import Dataset

    dataset = Dataset.load(data)
    dataset.tars(split)
    stats = Stats.load(dataset.root) if split == "train" else None
    from pipeline.preview import sheet, write

    write(sheet(dataset, split, stats, images, seed), out)
    click.echo(f"Written to {out}")


@main.command()
@click.argument("data", type=FOLDER)
@click.option("--decode", is_flag=True, help="Also decode every image completely.")
@click.option("--quarantine", is_flag=True, help="Take bad samples out of the .idx files; no tar is written to.")
@JSON
@WORKERS
def verify(data: Path, decode: bool, quarantine: bool, as_json: bool, workers: int | None) -> None:
    """Verify every shard and sample, or name what is bad.

    Exits with 1 if anything is bad.
    """
    from shards import verify as verification
    from shards.dataset import Dataset

    Dataset.load(data)
    report = verification.verify(data, decode=decode, quarantine=quarantine, workers=workers)
    show_json_or(as_json, report.described(), verification.show(report, data, quarantine))
    raise SystemExit(0 if report.intact else 1)


@main.command()
@DATA
@located
@JSON
@click.option("--classes", "all_classes", is_flag=True, help="List all classes, not only the first.")
def info(data: Any, as_json: bool, all_classes: bool) -> None:
    """Show what a data set holds: samples, sizes, classes."""
    from shards.dataset import Dataset
    from shards.info import describe, table

    about = describe(Dataset.load(data))
    show_json_or(as_json, about, table(about, all_classes))


def read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """`--config`: the file's options become the defaults, which the command line goes before."""
    if path:
        ctx.default_map = read_options(path)


def length_of(options: dict[str, Any]) -> dict[str, Any]:
    """The options with only one of --epochs and --steps where one is from the command line and one from `--config`."""
    source = click.get_current_context().get_parameter_source
    given = {name for name in ("epochs", "steps") if source(name) is click.core.ParameterSource.COMMANDLINE}
    return {**options, "steps" if given == {"epochs"} else "epochs": None} if len(given) == 1 else options


@main.command(cls=GroupedCommand)
@click.option(
    "--config",
    type=FILE,
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="Take options from this file, a run's config.json or TOML; the command line goes before it.",
)
@training_options(*OPTIONS)
def train(**options: Any) -> None:
    """Train AlexNet; --gpus 2 is the paper's two towers.

    SIGTERM, SIGUSR1, SIGHUP and Ctrl-C end it after the step that is under way, with a checkpoint and exit code 75.
    """
    from trainer.run_folder import check_start

    config = TrainConfig(**length_of(options))
    check_start(config)
    from trainer import train as training
    from trainer.preemption import EXIT_PREEMPTED, Preempted

    try:
        training.train(config)
    except Preempted:
        raise SystemExit(EXIT_PREEMPTED) from None


@main.command("eval")
@training_options("data")
@located
@click.option(
    "--checkpoint",
    "checkpoints",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    help="A run's folder, or a checkpoint's file. Given several times, their predictions are averaged.",
)
@WHICH
@crops_option(1)
@click.option("--split", default="val", show_default=True, help="The split to evaluate on.")
@training_options("batch_size")
@click.option("--per-class", is_flag=True, help="Also tell the hardest classes and the commonest confusions.")
@JSON
@training_options("gpus", "device")
@decoding
def evaluate(data: Any, gpus: int | None, device: str, **options: Any) -> None:
    """Measure a checkpoint's top-1 and top-5 error.

    Several checkpoints answer together, as the paper's ensembles.
    """
    from pipeline.order import check_batch_size
    from shards.dataset import Dataset
    from trainer.run_folder import find_checkpoint

    check_towers(1 if gpus is None else gpus, None)
    check_batch_size(options["batch_size"], gpus or 1)
    Dataset.load(data).tars(options["split"])
    which = options.pop("which")
    options["checkpoints"] = tuple(find_checkpoint(path, which) for path in options["checkpoints"])
    from trainer.evaluate import EvalOptions, run_evaluation

    run_evaluation(data, gpus, device, EvalOptions(**options))


@main.command()
@CHECKPOINT
@WHICH
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@crops_option(10)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many classes to name.")
@JSON
@training_options("device")
def predict(
    checkpoint: Path, which: str, images: tuple[str, ...], crops: int, top: int, as_json: bool, device: str
) -> None:
    """Name the classes that a model takes images for.

    IMAGE is a file, a folder, a pattern, or - for an image on standard input. Exits with 1 if an image cannot be read;
    the others are answered.
    """
    from trainer.run_folder import find_checkpoint

    file = find_checkpoint(checkpoint, which)
    import torch

    from inference import predict as prediction
    from inference.trained import Trained
    from trainer.launch import choose_device

    files, missing = prediction.find_images(images)
    trained = Trained.load(file, torch.device(choose_device(device, 1)))
    all_read = prediction.run(prediction.Predictor(trained, crops, top), files, missing, as_json)
    raise SystemExit(0 if all_read else 1)


@main.command()
@CHECKPOINT
@WHICH
@click.option(
    "--format",
    type=click.Choice(("safetensors", "onnx", "torchscript", "torchvision")),
    required=True,
    help="What to write. The mean image and the names of the classes are inside.",
)
@click.option("--out", type=OutputFile(), required=True, help="The file to write.")
def export(checkpoint: Path, which: str, format: str, out: Path) -> None:
    """Write a model as a file that other programs read.

    It takes N x 3 x 224 x 224 RGB images on the 0..255 scale to N x classes logits.
    """
    from trainer.run_folder import find_checkpoint

    file = find_checkpoint(checkpoint, which)
    import torch

    from inference import export as exporting
    from inference.trained import Trained

    exporting.export(Trained.load(file, torch.device("cpu")), format, out)
    click.echo(f"Written to {out}")


@main.command()
@CHECKPOINT
@WHICH
@training_option("data")
@located
@click.option("--out", type=FOLDER, required=True, help="The folder to write conv1.png, guesses.png, neighbors.png to.")
@click.option("--split", default="val", show_default=True, help="The split of the images to guess.")
@training_option("seed", help="Seeds which images of the split are shown.")
@training_options("device")
@click.option(
    "--search",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="How many training images to look for neighbors in.",
)
def figures(
    checkpoint: Path, which: str, data: Any, out: Path, split: str, seed: int, device: str, search: int
) -> None:
    """Draw the paper's figures 3 and 4 of a model."""
    from shards.dataset import Dataset
    from trainer.run_folder import find_checkpoint

    dataset, file = Dataset.load(data), find_checkpoint(checkpoint, which)
    dataset.split(split)
    import torch

    from inference.figures import draw_all
    from inference.trained import Trained
    from trainer.launch import choose_device

    trained = Trained.load(file, torch.device(choose_device(device, 1)))
    click.echo("\n".join(draw_all(trained, dataset, split, out, seed, search)))


@main.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--out",
    type=OutputFile(".html", ".svg"),
    required=True,
    help="The file to write: .html is the page, .svg the learning curve of one run alone.",
)
@WHICH
@training_option("data", required=False, help="The runs' data set.  [default: what each run's config.json names]")
@located
@training_options("device")
def report(runs: tuple[Path, ...], out: Path, data: Any, which: str, device: str) -> None:
    """Write training runs as one page of HTML.

    Several runs stand beside one another. The page needs nothing but itself.
    """
    from trainer.run_folder import check_is_run

    for run in runs:
        check_is_run(run)
    from report import command as reporting

    read = reporting.load(runs, out)
    for line in reporting.write(read, out, data, which, device):
        click.echo(f"notice: {line}", err=True)
    click.echo(f"Written to {out}")


@main.command("throughput-bench")
@training_option("data", required=False, help="The folder that `shard` made, or its URL.  [default: a rendered set]")
@located
@click.option("--json", "json_path", type=OutputFile(), help="Write the figures to this file.")
@training_options("batch_size", "width")
@click.option(
    "--seconds",
    type=FiniteRange(0, min_open=True),
    default=3.0,
    show_default=True,
    help="How long to measure each stage.",
)
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Show two --json files side by side, instead of measuring.",
)
@click.option("--cold", is_flag=True, help="Drop the shards from the page cache before each reading.")
@click.option("--peers", "with_peers", is_flag=True, help="Also measure other loaders on the same images.")
@click.option(
    "--scaling", "with_scaling", is_flag=True, help="Also measure other numbers of threads and ranks, batches, sizes."
)
@click.option("--report", "report_path", type=OutputFile(), help="Write a page of HTML to this file.")
@click.option(
    "--tune",
    is_flag=True,
    help="Find DALI's fastest settings instead, for training to pick up; measures and writes nothing else.",
)
@training_options("precision", "compile", "cuda_graphs", "gpus", "parallel", "device")
@decoding
def throughput_bench(compare: tuple[Path, Path] | None, **options: Any) -> None:
    """Measure each stage, its limit, and what bounds training."""
    if compare:
        from bench.compare import compare as compare_runs

        click.echo(compare_runs(*compare))
        return
    if options["data"]:
        ready(options["data"])
    from bench import command
    from bench.config import BenchConfig
    from bench.harness.model_step import ModelOptions

    model = {name: options.pop(name) for name in ("width", "precision", "compile", "cuda_graphs")}
    command.run(BenchConfig(model=ModelOptions(**model), **options))


@main.command(epilog=STUDIES_HELP)
@click.argument("name", type=click.Choice(tuple(STUDIES)), metavar="NAME")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Images in train/CLASS and test/CLASS or val/CLASS: a folder, a .tar or a .tar.gz.",
)
@click.option("--out", type=FOLDER, required=True, help="The folder for the answer, its pictures and what is finished.")
@click.option("--seeds", type=click.IntRange(1), default=SEEDS, show_default=True, help="Trainings of each variant.")
@click.option("--full", is_flag=True, help="The size that is meant for a GPU.")
@click.option("--json", "json_path", type=OutputFile(), help="Also write the answer to this file.")
@click.option(
    "--device",
    type=click.Choice(("auto", "cpu", "cuda")),
    default="auto",
    show_default=True,
    help="Where to train; auto takes a GPU where there is one.",
)
def study(name: str, out: Path, json_path: Path | None, **options: Any) -> None:
    """Try a claim of the paper: a figure beside its own.

    A study that was broken off is continued by the same command, and more --seeds add to those that are there.
    """
    from bench.harness.record import write_report
    from paper.command import run, written

    report = run(name, out=out, **options)
    write_report(json_path, report)
    click.echo(written(report, out))


@main.command("demo")
@click.option("--out", type=FOLDER, default="demo", show_default=True, help="The folder that gets everything.")
@click.option("--short", is_flag=True, help="Train for half a minute instead of a couple.")
@training_options("seed", "device")
def run_demo(out: Path, short: bool, device: str, seed: int) -> None:
    """Render images, shard them, and train two towers on them."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out} is not empty: remove it, or choose another folder")
    make_output_folder(out)
    import demo

    demo.run(out, short, device, seed)


if __name__ == "__main__":
    main()
