"""Every option of training, written once: its default, unit, help, and whether a resumed run must have the same.

The command line, a run's `config.json`, the check on resuming and the table of docs/options.md are all made from
`TrainConfig`. Nothing here imports torch, so that `--help` answers at once.
"""

import dataclasses
import json
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from shards.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GROUPS = ("Data", "Model", "Recipe", "Speed", "Checkpoints and logs")
PLATEAU = "plateau"
EPOCHS = 90  # of a run whose length is not given (section 5)
# What `config.json` tells of a run besides its options: the data set's fingerprint, classes, their words and other
# facts, the decoding settings that were resolved, and the versions of the libraries
FACTS = ("dataset", "classes", "words", "dataset_facts", "decoding", "versions")
ADDED = ("shuffle",)  # options that a resumed run must have the same, but that the oldest runs do not record


def parse_epochs(text: str) -> tuple[int, ...] | str:
    """Epochs with commas between them (none for the empty text), or the word "plateau". Raises ValueError."""
    if text == PLATEAU:
        return text
    try:
        return tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError:
        raise ValueError(f"{text!r} is not a list of epochs: write it like 25,51,79, or {PLATEAU}") from None


def parse_steps(text: str) -> tuple[int, int]:
    """The first and the last of some steps, as in 10-20. Raises ValueError."""
    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ValueError(f"{text!r} is not a range of steps: write it like 10-20")
    return int(first), int(last)


UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """A number of bytes with or without a unit: 1000, 64MiB, 1GB. Raises ValueError."""
    digits = text.rstrip("BKMGIbkmgi ")
    try:
        size = int(float(digits) * UNITS[text[len(digits) :].strip().upper()])
    except (ValueError, KeyError, OverflowError):
        raise ValueError(f"{text!r} is not a size: write it like 256MiB") from None
    if size < 1:
        raise ValueError(f"{text!r} is not a size: it has to be at least one byte")
    return size


def check_towers(gpus: int, parallel: str | None) -> None:
    """Raises InputError for a number of devices that two towers cannot be shared among. Args: parallel: None in a
    command that has no --parallel."""
    if gpus < 1 or (parallel in ("towers", None) and gpus > 1 and gpus % 2):
        remedy = "it takes 1 (both on one device) or an even number" + (", or --parallel data" if parallel else "")
        raise InputError(f"--gpus {gpus}: AlexNet has two towers, so {remedy}")


@dataclass(frozen=True)
class Option:
    """What is known of an option besides its name, type and default.

    help: whole sentences; group: one of GROUPS; unit: of the number; default_help: what the default does, where None
    stands for it; choices, minimum, maximum, above, below: what is allowed, `above` and `below` excluded; parse: from
    the command line's text, for types of our own; metavar: how the help calls the value; flag: the command line's
    spelling where it is not the field's name; must_agree: a resumed run must have the same; recorded: `config.json`
    has it.
    """

    help: str
    group: str
    unit: str = ""
    default_help: str = ""
    choices: tuple[str | int, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    parse: Callable[[str], Any] | None = None
    metavar: str | None = None
    flag: str | None = None
    must_agree: bool = False
    recorded: bool = True

    def complaint(self, value: Any) -> str | None:
        """Why a value of the right type is not allowed, None when it is."""
        if self.choices and value not in self.choices:
            return f"is none of {', '.join(map(str, self.choices))}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if not math.isfinite(value):
            return "is not a finite number"
        if self.minimum is not None and value < self.minimum:
            return f"is less than {self.minimum:g}"
        if self.maximum is not None and value > self.maximum:
            return f"is more than {self.maximum:g}"
        if self.above is not None and value <= self.above:
            return f"is not more than {self.above:g}"
        if self.below is not None and value >= self.below:
            return f"is not less than {self.below:g}"
        return None


def option(help: str, group: str, default: Any = dataclasses.MISSING, **more: Any) -> Any:
    """A field of TrainConfig: see `Option`. Without a default it has to be given."""
    return field(default=default, metadata={"option": Option(help, group, **more)})


@dataclass(frozen=True)
class TrainConfig:
    """A training run's options. `config.json` holds them by these names; None is what `default_help` says."""

    data: str | Path = option("The folder that `shard` made, or the URL of one.", "Data", metavar="FOLDER|URL")
    out: Path = option(
        "The run's folder, which gets config.json, metrics.jsonl and checkpoints.",
        "Checkpoints and logs",
        metavar="RUN",
        recorded=False,
    )
    cache: Path | None = option(
        "The folder that keeps shards of a URL.",
        "Data",
        None,
        metavar="FOLDER",
        default_help="~/.cache/alexnet-dali",
    )
    cache_size: int | None = option(
        "The most bytes of shards in the cache; the least recently used are deleted.",
        "Data",
        None,
        unit="bytes",
        parse=parse_bytes,
        metavar="BYTES",
        minimum=1,
        default_help="64GiB",
    )
    shuffle: str = option(
        "How an epoch is shuffled: shards and the samples within each, which reads each shard once, or all samples.",
        "Data",
        "shards",
        choices=("shards", "full"),
        must_agree=True,
    )
    mean: str = option(
        "What is subtracted: the mean image's central crop as in 2012, or one number a channel.",
        "Data",
        "image",
        choices=("image", "channel"),
        must_agree=True,
    )
    lighting: bool = option(
        "Vary the training images' colors along their principal components (section 4.1).",
        "Data",
        True,
        must_agree=True,
    )
    max_bad: float = option(
        "The share of samples that may fail to decode, one sample at least; they are skipped and named.",
        "Data",
        0.001,
        minimum=0,
        maximum=1,
    )
    width: float = option(
        "The share of the paper's kernels and neurons in every layer.",
        "Model",
        1.0,
        minimum=0.03,
        maximum=1,
        must_agree=True,
    )
    variant: str = option(
        "The paper's model, that of the 2012 code, or the paper's smaller one of one tower (section 3.2).",
        "Model",
        "paper",
        choices=("paper", "release-2012", "one-tower"),
        must_agree=True,
    )
    init: Path | None = option(
        "Start from this run's weights, or a checkpoint's; the last layer is new where the classes are others.",
        "Model",
        None,
        metavar="RUN|FILE",
        default_help="random weights",
    )
    activation: str = option(
        "The activation function (section 3.1).", "Model", "relu", choices=("relu", "tanh"), must_agree=True
    )
    norm: bool = option(
        "Use local response normalization (section 3.3).", "Model", True, flag="--lrn/--no-lrn", must_agree=True
    )
    pool: str = option(
        "Max pooling as window/stride: 3/2 overlaps (section 3.4).",
        "Model",
        "3/2",
        choices=("3/2", "2/2"),
        must_agree=True,
    )
    dropout: float = option(
        "The probability of dropping a neuron of fc6 and fc7 (section 4.2).",
        "Model",
        0.5,
        minimum=0,
        below=1,
        must_agree=True,
    )
    epochs: int | None = option(
        "How long to train, in epochs.", "Recipe", None, unit="epochs", minimum=1, default_help="90, as in the paper"
    )
    steps: int | None = option(
        "How long to train, in steps, instead of --epochs.", "Recipe", None, unit="steps", minimum=1
    )
    batch_size: int = option(
        "Images in a global batch, over all devices.", "Recipe", 128, unit="images", minimum=1, must_agree=True
    )
    recipe: str = option(
        "The optimizer and schedule; large-batch scales --lr with the batch, warms up and uses LARS.",
        "Recipe",
        "paper",
        choices=("paper", "large-batch"),
        must_agree=True,
    )
    lr: float = option("The learning rate at the beginning.", "Recipe", 0.01, above=0, must_agree=True)
    lr_steps: Sequence[int] | str = option(
        "The epochs at which the learning rate is divided by 10; or plateau, to divide it when the validation error "
        "stops improving, three times at most.",
        "Recipe",
        (25, 51, 79),
        parse=parse_epochs,
        metavar="EPOCHS|plateau",
        must_agree=True,
    )
    patience: int = option(
        "How many evaluations without a lower error make a plateau.", "Recipe", 5, minimum=1, must_agree=True
    )
    seed: int = option(
        "Seeds the weights, the order of the samples, their augmentation and dropout.",
        "Recipe",
        0,
        minimum=0,
        must_agree=True,
    )
    gpus: int | None = option(
        "The number of devices: 1 holds both towers, 2 hold one each, 8 are four replicas of two.",
        "Speed",
        None,
        default_help="1, or torchrun's",
    )
    parallel: str = option(
        "How devices share the model: a tower each, all of it each, or all convolutions and a share of the dense "
        "layers' neurons each.",
        "Speed",
        "towers",
        choices=("towers", "data", "hybrid"),
    )
    device: str = option(
        "Where the model runs; auto takes CUDA devices where there are any, otherwise CPU processes.",
        "Speed",
        "auto",
        choices=("auto", "cuda", "cpu"),
    )
    precision: str = option(
        "The numbers that a step computes with; weights stay float32.",
        "Speed",
        "fp32",
        choices=("fp32", "tf32", "bf16", "fp16"),
        must_agree=True,
    )
    compile: bool | None = option(
        "Let torch.compile fuse the step; without it the normalization runs as TorchScript.",
        "Speed",
        None,
        must_agree=True,
        default_help="on one GPU, where Triton is installed",
    )
    cuda_graphs: bool | None = option(
        "Record the step's kernels once and launch them together, on one GPU.",
        "Speed",
        None,
        default_help="on one GPU",
    )
    threads: int | None = option(
        "DALI's CPU threads on each rank, of all its pipelines.",
        "Speed",
        None,
        minimum=1,
        default_help="tuned, or one a core",
    )
    prefetch: int | None = option(
        "How many batches DALI prepares ahead.", "Speed", None, unit="batches", minimum=1, default_help="tuned, or 2"
    )
    affinity: bool | None = option("Bind DALI's threads to cores.", "Speed", None, default_help="tuned, or not")
    decode_on: str | None = option(
        "Where images are decoded.",
        "Speed",
        None,
        choices=("device", "cpu"),
        default_help="tuned, or the model's device",
    )
    hw_decoder_load: float | None = option(
        "The share of JPEGs that a GPU's hardware decoder takes.",
        "Speed",
        None,
        minimum=0,
        maximum=1,
        default_help="tuned, or 0.65",
    )
    pipelines: int | None = option(
        "How many pipelines of DALI share each batch on a rank.",
        "Speed",
        None,
        minimum=1,
        default_help="tuned, or 3 on a GPU and 1 on a CPU",
    )
    operator_concurrency: str | None = option(
        "Which of DALI's operators run at the same time on a GPU: full, all that are independent; backend, those on "
        "the CPU beside those on the GPU; or none.",
        "Speed",
        None,
        choices=("full", "backend", "none"),
        default_help="tuned, or full",
    )
    resume: str = option(
        "Whether to continue from RUN's newest checkpoint.",
        "Checkpoints and logs",
        "never",
        choices=("never", "auto"),
        recorded=False,
    )
    checkpoint_every: int = option("Steps between checkpoints.", "Checkpoints and logs", 1000, unit="steps", minimum=1)
    keep: int = option("How many checkpoints to keep, besides the best.", "Checkpoints and logs", 3, minimum=1)
    log_every: int = option(
        "Steps between log lines; the first and the last step always get one.",
        "Checkpoints and logs",
        10,
        unit="steps",
        minimum=1,
    )
    eval_every: int = option(
        "Epochs between evaluations; the last step is always followed by one.",
        "Checkpoints and logs",
        1,
        unit="epochs",
        minimum=1,
    )
    final_crops: int = option(
        "The crops of the last evaluation; 10 adds the paper's ten-crop test.",
        "Checkpoints and logs",
        1,
        choices=(1, 10),
    )
    tensorboard: bool = option("Write TensorBoard's files into RUN, too.", "Checkpoints and logs", False)
    profile: tuple[int, int] | None = option(
        "Trace these steps into RUN, for chrome://tracing.",
        "Checkpoints and logs",
        None,
        parse=parse_steps,
        metavar="FIRST-LAST",
    )

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise InputError("--epochs and --steps both say how long to train: give one of them")

    @property
    def decoding(self) -> dict[str, Any]:
        """What is chosen of `pipeline.settings.Settings`, by name; None is what was tuned, or a default."""
        return {name: getattr(self, name) for name in DECODING}

    @property
    def must_agree(self) -> tuple[str, ...]:
        """The options in which a resumed run must have the same, besides its data set."""
        names = tuple(name for name, about in OPTIONS.items() if about.must_agree)
        # An evaluation's error decides when a plateau has come
        return (*names, "eval_every") if self.lr_steps == PLATEAU else names

    def recorded(self) -> dict[str, Any]:
        """The options as `config.json` holds them."""
        values = {name: _jsonable(getattr(self, name)) for name, about in OPTIONS.items() if about.recorded}
        if self.epochs is None and self.steps is None:
            values["epochs"] = EPOCHS
        return values

    @classmethod
    def from_recorded(cls, values: Mapping[str, Any], out: Path) -> "TrainConfig":
        """From what a `config.json` or a checkpoint holds; an option that it is too old for has its default.

        Raises KeyError or TypeError when it is not a run's configuration.
        """
        expected = [name for name, about in OPTIONS.items() if about.must_agree and name not in ADDED]
        missing = [name for name in expected if name not in values]
        if missing:
            raise KeyError(missing[0])
        known = {name: _typed(values[name], HINTS[name]) for name, about in OPTIONS.items() if name in values}
        return cls(**{**known, "out": out})


OPTIONS: dict[str, Option] = {about.name: about.metadata["option"] for about in fields(TrainConfig)}
DEFAULTS: dict[str, Field[Any]] = {about.name: about for about in fields(TrainConfig)}
HINTS: dict[str, Any] = get_type_hints(TrainConfig)
DECODING = ("threads", "prefetch", "affinity", "decode_on", "hw_decoder_load", "pipelines", "operator_concurrency")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _typed(value: Any, hint: Any) -> Any:
    """A value from JSON or TOML as a field's type has it. Raises TypeError when it cannot be."""
    if get_origin(hint) in (Union, types.UnionType):
        for inner in get_args(hint):
            try:
                return _typed(value, inner)
            except TypeError:
                continue
        raise TypeError
    if hint is type(None) and value is None:
        return None
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if get_origin(hint) is tuple and isinstance(value, list | tuple) and len(value) == len(get_args(hint)):
        return tuple(map(_typed, value, get_args(hint)))
    if get_origin(hint) is Sequence and isinstance(value, list | tuple):
        return tuple(_typed(one, get_args(hint)[0]) for one in value)
    raise TypeError


def read_options(path: Path) -> dict[str, Any]:
    """The options in a file for `--config`: a run's `config.json`, or TOML of the same names.

    Raises: InputError that names the file and each key that is unknown or whose value is mistyped.
    """
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise InputError(f"--config {path} is not {kind} ({error}): give a run's config.json, or TOML") from None
    if not isinstance(values, dict):
        raise InputError(f"--config {path} does not hold options by name: give a run's config.json, or TOML")
    names = {key: key.replace("-", "_") for key in values if key not in FACTS}
    complaints = [f"{key} is not an option" for key, name in names.items() if name not in OPTIONS]
    found = {}
    for key, name in names.items():
        if name in OPTIONS and values[key] is not None:
            try:
                found[name] = parsed(name, values[key])
            except ValueError as error:
                complaints.append(f"{key}: {error}")
    if complaints:
        raise InputError(f"--config {path}: {'; '.join(complaints)}: see `train --help`")
    return found


def parsed(name: str, value: Any) -> Any:
    """An option's value from a file, in its own type. Raises ValueError saying what is wrong with it."""
    about = OPTIONS[name]
    if about.parse and isinstance(value, str):
        return about.parse(value)
    try:
        typed = _typed(value, HINTS[name])
    except TypeError:
        raise ValueError(f"{value!r} is not {_type_name(HINTS[name])}") from None
    if complaint := about.complaint(typed):
        raise ValueError(f"{value!r} {complaint}")
    return typed


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type_name(inner) for inner in get_args(hint) if inner is not type(None))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    return names.get(hint, "a list of whole numbers")


def default_of(name: str) -> Any:
    """An option's default; `dataclasses.MISSING` when it has to be given."""
    return DEFAULTS[name].default


def flag_of(name: str) -> str:
    """How the command line spells an option."""
    if OPTIONS[name].flag:
        return str(OPTIONS[name].flag)
    dashed = name.replace("_", "-")
    return f"--{dashed}/--no-{dashed}" if HINTS[name] in (bool, bool | None) else f"--{dashed}"


def options_table() -> str:
    """docs/options.md: every option by its group. `python -m trainer.config` writes it."""
    lines = [
        "# Options of `train`",
        "",
        "Written by `python -m trainer.config` from `trainer/config.py`: do not edit. The names are those of",
        "`config.json` and of a file for `--config`; a resumed run must have the same where the last column says so.",
    ]
    for group in GROUPS:
        lines += [
            "",
            f"## {group}",
            "",
            "| option | name | default | what it does | resumed |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, about in OPTIONS.items():
            if about.group == group:
                cells = (f"`{flag_of(name)}`", f"`{name}`", default_text(name), about.help, "same" * about.must_agree)
                lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def default_text(name: str) -> str:
    """An option's default, as the documentation has it."""
    default, about = default_of(name), OPTIONS[name]
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    if isinstance(default, bool):
        default = "on" if default else "off"
    text = about.default_help or (
        "required" if default is dataclasses.MISSING else "none" if default is None else default
    )
    unit = about.unit.removesuffix("s") if default == 1 else about.unit
    return f"{text} {unit}".strip() if isinstance(default, int | float) else str(text)


if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "options.md").write_text(options_table())
