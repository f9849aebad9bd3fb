"""The training loop: batches in; `config.json`, `metrics.jsonl` and checkpoints out (paper, section 5).

All randomness is a function of (seed, epoch, step), none of it is state: the order and the draws of the data come from
the loader, the dropout masks from a generator that is seeded anew each step. So a resumed run is the unbroken run, and
two processes are one.
"""

import contextlib
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from nvidia import dali

from pipeline.loader import Loader
from pipeline.preprocess import Preprocess
from pipeline.stats import Stats
from shards.atomic import atomic_write, locked
from shards.dataset import Dataset
from shards.errors import InputError
from shards.progress import Progress
from shards.remote import Remote
from trainer import checkpoint, metrics
from trainer.alexnet import AlexNet, model_from_config
from trainer.cuda_graph import check_cuda_graphs
from trainer.evaluate import evaluate
from trainer.launch import launch
from trainer.model_parallel import replicate
from trainer.optimizer import LARS, PaperSGD
from trainer.precision import Precision, compile_model
from trainer.preemption import PreemptionHandler, Stopped
from trainer.rank import RankContext
from trainer.schedule import PLATEAU, large_batch_rate, learning_rate
from trainer.train_step import TrainStep

# What makes a run the run that it is: a resumed one must agree in these. Devices and lengths may differ.
IDENTITY = (
    *("dataset", "batch_size", "recipe", "lr", "lr_steps", "patience", "seed", "dropout", "width", "mean"),
    *("variant", "activation", "norm", "pool", "lighting", "precision", "compile"),
)


def train(
    data: Path | Remote,
    out: Path,
    *,
    gpus: int | None = None,
    parallel: str = "towers",
    device: str = "auto",
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    recipe: str = "paper",
    lr: float = 0.01,
    lr_steps: Sequence[int] | str = (25, 51, 79),
    patience: int = 5,
    seed: int = 0,
    dropout: float = 0.5,
    width: float = 1.0,
    variant: str = "paper",
    activation: str = "relu",
    norm: bool = True,
    pool: str = "3/2",
    lighting: bool = True,
    precision: str = "fp32",
    compile: bool = False,
    cuda_graphs: bool = False,
    mean: str = "image",
    max_bad: float = 0.001,
    decoding: dict | None = None,
    resume: bool = False,
    checkpoint_every: int = 1000,
    keep: int = 3,
    log_every: int = 10,
    eval_every: int = 1,
    final_crops: int = 1,
    tensorboard: bool = False,
    profile: tuple[int, int] | None = None,
) -> None:
    """Trains on DIR's train split and evaluates on its val split, in one process a device.

    Args: gpus, device, parallel: see `trainer.launch.launch`; epochs or steps: how long (90 epochs when neither is
    given); batch_size: of the global batch; recipe: "paper" or "large-batch", see `trainer.optimizer`; lr_steps: epochs at
    whose start the rate is divided by ten, or "plateau"; patience: evaluations that make a plateau; variant,
    activation, norm, pool: see `trainer.alexnet.Variant`; precision, compile: see `trainer.precision`; cuda_graphs: see
    `trainer.cuda_graph`; lighting, max_bad: see `pipeline.loader.Loader`; mean: see `pipeline.preprocess.Preprocess`; decoding: what is
    chosen of `pipeline.settings.Settings`, by name; resume: continue from the newest checkpoint of `out`;
    checkpoint_every, log_every: steps; keep: checkpoints; eval_every: epochs; final_crops: 10 adds the paper's ten-crop
    test at the end; tensorboard: see `trainer.metrics.MetricsLogger`; profile: the first and last step to trace.
    Raises: InputError; `trainer.preemption.Stopped` when it was asked to stop, after a checkpoint.
    """
    if epochs is not None and steps is not None:
        raise InputError("--epochs and --steps both say how long to train: give one of them")
    dataset = Dataset.load(data)
    Stats.load(dataset.root)
    dataset.split("train")
    if lr_steps == PLATEAU and "val" not in dataset.splits:
        raise InputError(f"--lr-steps {PLATEAU}, but {data} has no val split to see one on: name epochs instead")
    if tensorboard:
        metrics.board_writer()
    config = {
        "dataset": dataset.fingerprint,
        "data": str(data),
        "classes": list(dataset.classes),
        "gpus": gpus,
        "parallel": parallel,
        "device": device,
        "epochs": 90 if epochs is None and steps is None else epochs,
        "steps": steps,
        "batch_size": batch_size,
        "recipe": recipe,
        "lr": lr,
        "lr_steps": lr_steps if lr_steps == PLATEAU else list(lr_steps),
        "patience": patience,
        "seed": seed,
        "dropout": dropout,
        "width": width,
        "variant": variant,
        "activation": activation,
        "norm": norm,
        "pool": pool,
        "lighting": lighting,
        "precision": precision,
        "compile": compile,
        "cuda_graphs": cuda_graphs,
        "mean": mean,
        "max_bad": max_bad,
        "decoding": decoding or {},
        "checkpoint_every": checkpoint_every,
        "keep": keep,
        "log_every": log_every,
        "eval_every": eval_every,
        "final_crops": final_crops,
        "tensorboard": tensorboard,
        "profile": profile,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "dali": dali.__version__},
    }
    # A worker that torchrun starts again is to go on
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    check_run_folder(out, config, resume)
    launch(train_rank, gpus, device, data, out, config, parallel=parallel)


def check_run_folder(out: Path, config: dict, resume: bool) -> None:
    """Raises InputError unless `out` can take this run: it is free, or holds the same one and that is to be resumed."""
    path = out / "config.json"
    if path.exists():
        if not resume:
            raise InputError(f"{out} holds a run already: continue it with --resume auto, or choose another --out")
        try:
            old = json.loads(path.read_text())
            identity = (*IDENTITY, "eval_every") if config["lr_steps"] == PLATEAU else IDENTITY
            differing = [f"{key} was {old[key]}, now {config[key]}" for key in identity if old[key] != config[key]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a run's configuration ({error!r}): choose another --out") from None
        if differing:
            raise InputError(f"{out} holds a run that differs ({'; '.join(differing)}): choose another --out")
    elif checkpoint.all_of(out):
        raise InputError(f"{out} holds checkpoints of a run but not its config.json: choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        # A nameless one: processes of several machines may be trying the same folder
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}") from None


def train_rank(context: RankContext, data: Path | Remote, out: Path, config: dict) -> None:
    """One rank's part of a training run."""
    if config["cuda_graphs"]:
        check_cuda_graphs(context.device, context.world_size)
    dataset = Dataset.load(data)
    stats = Stats.load(dataset.root)
    config["decoding"] = context.settings(config["decoding"], dataset.size)._asdict()
    shared = {"stats": stats, "batch_size": config["batch_size"], "max_bad": config["max_bad"]}
    shared |= {**context.loading, **config["decoding"]}
    preprocess = Preprocess(stats, config["mean"], context.device)
    loader = Loader(dataset, "train", "train", seed=config["seed"], lighting=config["lighting"], **shared)
    val = Loader(dataset, "val", "center", **shared) if "val" in dataset.splits else None
    last = config["steps"] or config["epochs"] * loader.batches
    first = context.rank == 0

    model = model_from_config(config, len(dataset.classes), context.layout)
    model.initialize(config["seed"])
    model.to(context.device)
    optimizer = optimizer_of(config["recipe"], model, config["lr"])
    step = 0
    precision = Precision(config["precision"], context.device, context.world_size)
    errors = {}  # validation top-1 error by step
    with contextlib.ExitStack() as held:
        stop = held.enter_context(PreemptionHandler(context.world_size))
        if first:
            # What is left of a killed run's processes may still be on its last step
            held.enter_context(locked(out, wait=30))
        newest = context.broadcast(checkpoint.newest(out, partial(print, file=sys.stderr)) if first else None)
        if newest:
            state = checkpoint.load(newest)
            step, errors = checkpoint.restore(state, model, optimizer), dict(state["errors"])
            precision.load(state["precision"])
        trained = replicate(model, context.layout)
        if config["compile"]:
            trained = compile_model(trained, context.device)
        how = (precision, context.device, config["seed"], config["cuda_graphs"])
        update = TrainStep(trained, context.layout, optimizer, *how)
        logger = None
        if first:
            with atomic_write(out / "config.json") as file:
                file.write(json.dumps(config, indent=1).encode())
            logger = metrics.MetricsLogger(out, step, step in errors, config["tensorboard"])
            if step:
                done = step > last or (step == last and (step in errors or not val))
                print(f"Resumed after step {step} of {last}" + (": nothing is left to do" if done else ""))

        clock = metrics.Clock(context.device)
        writer = checkpoint.Writer(out, first, config["keep"])
        tracer = held.enter_context(Tracer(config["profile"], out)) if first else None
        left = (last - step) * config["batch_size"]
        progress = held.enter_context(Progress("train", left, lines=False, quiet=not first))
        loss, batches, saved = None, None, step
        stops = False
        # A turn begins between two steps, where all but the update is done
        while step <= last:
            evaluated = best = False
            if val and not stops and step not in errors and is_evaluated(step, last, loader.batches, config):
                with clock.paused():
                    views = [(1, val)]
                    if step == last and config["final_crops"] == 10:
                        tens = {**shared, "batch_size": fewer(config["batch_size"], context)}
                        views.append((10, Loader(dataset, "val", "ten", **tens)))
                    results = [
                        (crops, evaluate(model, view, preprocess, context, precision, stops=stop.agreed))
                        for crops, view in views
                    ]
                    # One that was broken off is made by the run that goes on from here
                    stops = any(result is None for _, result in results)
                    if not stops:
                        evaluated, error = True, results[0][1]["top1_error"]
                        best = error < min(errors.values(), default=math.inf)
                        errors[step] = error
                        if first:
                            record(logger, progress, step, last, (step - 1) // loader.batches, results)
            # After the evaluation, so that a resumed run need not repeat it
            saves = best or stops or step == last or step % config["checkpoint_every"] == 0
            if saves and (evaluated or step != saved):
                with clock.paused():
                    check_finite(loss, step, loader, optimizer, out)
                    told = {"config": config, "errors": list(errors.items()), "precision": precision.state()}
                    writer.save(step, model, optimizer, told, best)
                    saved = step
            if stops or step == last:
                break

            if batches is None or step % loader.batches == 0:
                context.share_bad_samples(loader)
                batches = clock.waiting(loader.epoch(step // loader.batches, start=step % loader.batches))
            images, labels = context.gather_batch(next(batches), preprocess)
            rate = rate_at(step, loader.batches, config, list(errors.values()))
            before = loss
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            loss = update(images, labels, step)
            # Of the step before: a GPU has one to work on while this waits
            check_finite(before, step, loader, optimizer, out)
            writer.check()
            step += 1
            clock.images += config["batch_size"]
            progress.advance(config["batch_size"])
            if tracer:
                tracer.made(step)
            if step % config["log_every"] == 0 or step in (1, last):
                value = context.layout.replicas.sum(loss.clone()).item()  # waits for the device, then comes the clock
                if first:
                    line = {"kind": "train", "step": step, "epoch": (step - 1) // loader.batches}
                    line |= {"loss": value, "lr": rate, **clock.look()}
                    logger.add(line)
                    report(progress, line, last, errors)
            stops = stop.agreed()
        writer.wait()
        if stops:
            context.barrier()  # or a process that is done first would have the others ended
            if first:
                progress.say(f"stopped after step {step} of {last} as asked: --resume auto continues")
    if stops:
        raise Stopped


def is_evaluated(step: int, last: int, batches: int, config: dict) -> bool:
    """Whether an evaluation follows a step: the last one, and the end of each `eval_every`-th epoch."""
    return step == last or (step > 0 and step % (batches * config["eval_every"]) == 0)


def optimizer_of(recipe: str, model: AlexNet, lr: float) -> PaperSGD:
    """The optimizer of a `--recipe`."""
    variant, biases = model.variant, {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    decay = {} if variant.bias_decay else {"weight_decay": 0.0}
    groups = [
        {"params": [p for name, p in model.named_parameters() if name not in biases]},
        {"params": list(biases.values()), "lr_scale": variant.bias_rate, **decay},
    ]
    if recipe == "paper":
        return PaperSGD(groups, lr)
    shard_group = {parameter: model.shard_group(name) for name, parameter in model.named_parameters()}
    return LARS(groups, lr, lambda parameter, squares: shard_group[parameter].sum(squares))


def rate_at(step: int, batches: int, config: dict, errors: Sequence[float]) -> float:
    """The learning rate of the update after `step` of them, `batches` of which are an epoch."""
    rate = learning_rate(config["lr"], step // batches, config["lr_steps"], errors, config["patience"])
    return rate if config["recipe"] == "paper" else large_batch_rate(rate, config["batch_size"], step / batches)


def fewer(batch_size: int, context: RankContext) -> int:
    """A batch of so many fewer images that ten crops of each are about as many."""
    return -(-batch_size // 10 // context.world_size) * context.world_size


def record(logger: metrics.MetricsLogger, progress: Progress, step: int, last: int, epoch: int, results: list) -> None:
    """An evaluation's lines, one for each (crops, result), for machine and man."""
    for crops, result in results:
        logger.add({"kind": "eval", "step": step, "epoch": epoch, "crops": crops, **result})
        progress.say(
            f"step {step}/{last} epoch {epoch} val error{' of ten crops' * (crops > 1)}: "
            f"top-1 {result['top1_error']:.1%}, top-5 {result['top5_error']:.1%} of {result['samples']}"
        )


def report(progress: Progress, line: dict, last: int, errors: dict[int, float]) -> None:
    """A step's line for man: in the bar on a terminal, else of its own."""
    told = f"loss {line['loss']:.4f} lr {line['lr']:g} {line['img_per_s']:.0f} img/s data wait {line['data_wait']:.0%}"
    validated = f" val top-1 {list(errors.values())[-1]:.1%}" if errors else ""
    progress.note(told + validated, f"step {line['step']}/{last} epoch {line['epoch']} {told}")


def check_finite(loss: torch.Tensor | None, step: int, loader: Loader, optimizer: PaperSGD, out: Path) -> None:
    """Raises InputError, with the images and the checkpoint to go back to, when the loss of `step` is no number."""
    if loss is None or math.isfinite(value := loss.item()):
        return
    keys = loader.keys(*divmod(step - 1, loader.batches))
    named = ", ".join(keys[:8])
    if len(keys) > 8:
        listed = out / f"not-finite-{step:08d}.txt"
        listed.write_text("".join(f"{key}\n" for key in keys))
        named += f" and {len(keys) - 8} more, see {listed}"
    rate = optimizer.param_groups[0]["lr"]
    remedy = f"lower --lr (now {rate:g}); {checkpoint.last_good(out)}"
    raise InputError(f"the loss is {value} at step {step}, of the images {named}: {remedy}")


class Tracer:
    """Traces the steps of `--profile` with torch.profiler into `trace-FIRST-LAST.json`, for chrome://tracing; a context
    manager, whose end writes what there is of a run that ended before LAST."""

    def __init__(self, steps: tuple[int, int] | None, out: Path):
        self.steps, self.out, self.profiler = steps, out, None

    def __enter__(self) -> "Tracer":
        self.made(0)
        return self

    def __exit__(self, *_) -> None:
        if self.profiler:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.out / f"trace-{self.steps[0]}-{self.steps[1]}.json"))
            self.profiler = None

    def made(self, step: int) -> None:
        """So many steps are done."""
        if self.steps and step == self.steps[0] - 1:
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        if self.steps and step == self.steps[1]:
            self.__exit__()
