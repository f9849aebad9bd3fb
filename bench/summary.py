"""The report of a run, from what was measured: stages beside their limits, ratios, prediction and bottleneck."""

import shlex
import sys
from dataclasses import dataclass, field

from bench import bottleneck
from bench.harness.load import Others, load_average
from bench.harness.machine import describe_machine
from bench.harness.timing import Timed
from bench.limits import ALL_DECODERS, Limit
from bench.model_stages import FIRST_STEPS
from bench.rank_setup import RankSetup
from bench.schema import SCHEMA, Alternative, Diagnosis, Load, Report, StageRow
from pipeline.geometry import CROP
from shards.dataset import Dataset

CROP_BYTES = 3 * CROP * CROP  # of an image as uint8
PREPROCESS_BYTES = CROP_BYTES + 4 * CROP_BYTES  # read and written to cast it to float32
# What is measured besides stages and limits, by the names that progress and report give it
RESUMED = f"train, first {FIRST_STEPS} steps resumed"
NO_LRN = "model without LRN"
ONE_DEVICE = "model on one device"
ALL_RANKS_DECODE_ALL = "every rank decodes all"
UNEVEN = 0.5  # of the median: a stage whose windows lie further apart, from p10 to p90, is not to be trusted


@dataclass
class Results:
    """What was measured, by name: `alternatives` is the training pipeline with one thing changed, `references` are the
    images a second that a stage is compared with; both figures of an image are this rank's."""

    stages: dict[str, Timed] = field(default_factory=dict)
    limits: dict[str, Limit] = field(default_factory=dict)
    alternatives: dict[str, Timed] = field(default_factory=dict)
    references: dict[str, float] = field(default_factory=dict)
    flop_per_image: dict[str, float] = field(default_factory=dict)  # by stage
    sent_per_image: float = 0.0  # bytes
    others: dict[str, Others] = field(default_factory=dict)  # while each of the above was measured
    began: float = field(default_factory=load_average)

    def doubtful(self, *names: str) -> bool:
        """Whether one of these measurements was spoiled: other programs ran, or its rate varied too much."""
        timed = [timed for name in names for timed in [self.stages.get(name) or self.alternatives.get(name)] if timed]
        uneven = any(one.spread["p90"] - one.spread["p10"] > UNEVEN * one.median for one in timed)
        return uneven or any(self.others[name].spoil for name in names)

    def rate(self, stage: str) -> float:
        return self.stages[stage].median


def build_report(setup: RankSetup, results: Results) -> Report:
    """Everything but `data.name`, `parallel`, and what other commands' options add."""
    context, config, dataset = setup.context, setup.config, setup.dataset
    diagnosis = diagnose(setup, results)
    return {
        "schema": SCHEMA,
        "command": shlex.join(["python", *sys.argv]),
        "machine": describe_machine(context),
        "data": {"name": "", "samples": dataset.split("train").samples, "bytes_per_picture": image_bytes(dataset)},
        "stored": dataset.size,
        "batch_size": config.batch_size,
        "width": config.model.width,
        "precision": config.model.precision,
        "compile": bool(config.model.compile),
        "cuda_graphs": bool(config.model.cuda_graphs),
        "parallel": config.parallel,
        "seconds_per_stage": config.seconds,
        "cold": config.cold,
        "decoding": setup.settings._asdict(),
        "peers": [],
        "scaling": [],
        "limits": {
            name: {
                "rate": limit.rate,
                "unit": limit.unit,
                "what": limit.what,
                "cpu": limit.cpu,
                "others_cpus": results.others[name].cpus,
                "doubtful": results.doubtful(name),
            }
            for name, limit in results.limits.items()
        },
        "stages": stage_rows(setup, results, diagnosis["predicted_img_per_s"]),
        "alternatives": alternative_rows(results),
        "flop_per_picture": results.flop_per_image["model"],
        "ratios": {
            name: {"ratio": over / under, "over": over, "under": under, "doubtful": results.doubtful(*measured)}
            for name, (over, under, measured) in ratios(setup, results, diagnosis["predicted_img_per_s"]).items()
        },
        "load": load(results),
        **diagnosis,
    }


def diagnose(setup: RankSetup, results: Results) -> Diagnosis:
    """What `bench.bottleneck` concludes."""
    rates = {name: one.median for name, one in results.stages.items()}
    changed = {name: one.median for name, one in results.alternatives.items() if name != ALL_RANKS_DECODE_ALL}
    shared = bottleneck.shared_by(setup.context.device.type, setup.settings.decode_on)
    cores = setup.context.threads * setup.context.world_size
    machine = bottleneck.Machine(cores, shared)
    trusted = bottleneck.Trust(
        full_width=setup.config.model.width == 1,
        training=not results.doubtful("train"),
        stages=not results.doubtful(*bottleneck.NAMES, "pipeline beside", "model beside"),
    )
    return bottleneck.diagnose(rates, changed, machine, trusted)


def load(results: Results) -> Load:
    """What else ran while the stages were measured."""
    others = results.others.values()
    return {
        "cores": max(one.cores for one in others),
        "stages": sum(one.cpus for one in others) / len(others),
        "peers": None,
        "scaling": None,
        "average": [results.began, load_average()],
    }


def stage_rows(setup: RankSetup, results: Results, predicted: float) -> list[StageRow]:
    """Each stage beside its limit; that of training is the `predicted` rate, and that of two stages at the same time
    what each makes alone."""
    shared = bottleneck.shared_by(setup.context.device.type, setup.settings.decode_on)
    decoder = ALL_DECODERS if shared == bottleneck.CARD else "libjpeg-turbo"
    # For each stage, its limit and how much of the limit's unit an image takes
    work: dict[str, tuple[str, float]] = {
        "read": ("storage", image_bytes(setup.dataset)),
        **{stage: (decoder, 1) for stage in ("decode", "patch", "pipeline", "eval")},
        "copy": ("host to device", CROP_BYTES),
        "feed": ("memory", PREPROCESS_BYTES),
        "exchange": ("between ranks", results.sent_per_image),
        **{stage: ("matmul", flop) for stage, flop in results.flop_per_image.items()},
    }
    rows: list[StageRow] = []
    for name, one in results.stages.items():
        limit, per_image = work.get(name, ("predicted", 0))
        most = results.limits[limit].rate / per_image if name in work else predicted
        if name.endswith(" beside"):
            limit = name.removesuffix(" beside")
            most = results.rate(limit)
        rows.append(
            {
                "name": name,
                "img_per_s": one.median,
                "p10": one.spread["p10"],
                "p90": one.spread["p90"],
                "per_device": one.devices,
                "limit": limit,
                "limit_img_per_s": most,
                "of_limit": one.median / most,
                "cpu_use": one.cpu,
                "gpu_use": one.gpu,
                "memory_peak_bytes": one.memory,
                "others_cpus": results.others[name].cpus,
                "doubtful": results.doubtful(name),
            }
        )
    return rows


def alternative_rows(results: Results) -> list[Alternative]:
    return [
        {"name": name, "img_per_s": one.median, "p10": one.spread["p10"], "p90": one.spread["p90"]}
        for name, one in results.alternatives.items()
    ]


def ratios(setup: RankSetup, results: Results, predicted: float) -> dict[str, tuple[float, float, tuple[str, ...]]]:
    """By name, two rates of which the first is divided by the second, and the measurements that they come from."""
    rate, references = results.rate, results.references
    baseline, storage, matmul = (results.limits[name] for name in ("libjpeg-turbo", "storage", "matmul"))
    named = {
        "decode / raw libjpeg-turbo": (rate("decode"), baseline.rate, ("decode", "libjpeg-turbo")),
        "pipeline / raw libjpeg-turbo": (rate("pipeline"), baseline.rate, ("pipeline", "libjpeg-turbo")),
        "read / cat": (rate("read"), storage.rate / image_bytes(setup.dataset), ("read", "storage")),
        "train / min(pipeline, model)": (
            rate("train"),
            min(rate("pipeline"), rate("model")),
            ("train", "pipeline", "model"),
        ),
        "train / predicted": (rate("train"), predicted, ("train", *bottleneck.NAMES)),
        "model FLOP/s / matmul FLOP/s": (
            rate("model") * results.flop_per_image["model"],
            matmul.rate,
            ("model", "matmul"),
        ),
        "CPU-seconds of 1,000 pictures / raw": (
            1000 * results.stages["pipeline"].cpu / rate("pipeline"),
            1000 * (baseline.cpu or 0.0),
            ("pipeline", "libjpeg-turbo"),
        ),
        "LRN tax": (rate("model"), references[NO_LRN], ("model", NO_LRN)),
        f"resume: first {FIRST_STEPS} steps / steady state": (references[RESUMED], rate("train"), (RESUMED, "train")),
    }
    if ONE_DEVICE in references:
        world_size = setup.context.world_size
        count = {2: "two"}.get(world_size, str(world_size))
        named[f"{count} devices / one at equal global batch"] = (
            rate("model"),
            references[ONE_DEVICE],
            ("model", ONE_DEVICE),
        )
    if "256-shards" in results.alternatives:
        named["256-shards / originals"] = (
            results.alternatives["256-shards"].median,
            rate("pipeline"),
            ("256-shards", "pipeline"),
        )
    if ALL_RANKS_DECODE_ALL in results.alternatives:
        # Each rank's share of the batch that it decodes is all that counts, so the rates are of the same images
        named["split decode / decoding twice"] = (
            rate("pipeline"),
            results.alternatives[ALL_RANKS_DECODE_ALL].median,
            ("pipeline", ALL_RANKS_DECODE_ALL),
        )
    return named


def image_bytes(dataset: Dataset) -> int:
    """Mean bytes an image takes in the train split's tars."""
    split = dataset.split("train")
    return split.bytes // split.samples
