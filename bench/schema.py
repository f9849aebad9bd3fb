"""The JSON that `throughput-bench --json` writes: its version and its keys. docs/throughput.md explains each."""

from typing import Any, TypedDict

SCHEMA = 3


class StageRow(TypedDict):
    """A stage's rate over all ranks, img/s, beside its limit."""

    name: str
    img_per_s: float
    p10: float
    p90: float
    per_device: list[float]
    limit: str
    limit_img_per_s: float
    of_limit: float
    cpu_use: float
    gpu_use: float | None
    memory_peak_bytes: int
    others_cpus: float
    doubtful: bool


class LimitRow(TypedDict):
    """What the machine can do at most: `rate` of `unit` a second."""

    rate: float
    unit: str
    what: str
    cpu: float | None
    others_cpus: float
    doubtful: bool


class RateRow(TypedDict):
    """A rate, img/s, with its spread."""

    img_per_s: float
    p10: float
    p90: float


class Alternative(RateRow):
    """The training pipeline with one thing changed."""

    name: str


class Ratio(TypedDict):
    """Two rates and the one over the other."""

    ratio: float
    over: float
    under: float
    doubtful: bool


class Change(TypedDict):
    """Training as predicted with one thing changed."""

    change: str
    img_per_s: float


class Diagnosis(TypedDict):
    """What bounds training, how well the stages' rates predict it, and what would help."""

    predicted_img_per_s: float
    prediction_error: float
    bottleneck: str
    next_bound: str
    would_be: list[Change]
    paper_hours: float
    verdict: str


class Point(RateRow):
    """One value of an axis and its rate."""

    x: int | str


class Axis(TypedDict):
    """How the rate changes along one axis: threads, ranks, batch or pictures."""

    axis: str
    what: str
    points: list[Point]


class Load(TypedDict):
    """What else ran on the machine: CPU-seconds a second of other programs while the stages, the other loaders and the
    scaling were measured (null: not measured), and the load average at the beginning and at the end."""

    cores: int
    stages: float
    peers: float | None
    scaling: float | None
    average: list[float]


class Report(Diagnosis):
    """Everything that one run measured. Older records have no `load`, `others_cpus` and `doubtful`."""

    load: Load

    schema: int
    command: str
    machine: dict[str, Any]
    data: dict[str, Any]
    stored: int | None
    batch_size: int
    width: float
    precision: str
    compile: bool
    cuda_graphs: bool
    parallel: str
    seconds_per_stage: float
    cold: bool
    decoding: dict[str, Any]
    peers: list[dict[str, Any]]
    scaling: list[Axis]
    limits: dict[str, LimitRow]
    stages: list[StageRow]
    alternatives: list[Alternative]
    flop_per_picture: float
    ratios: dict[str, Ratio]
