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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nvidia import dali
from torch import nn

from pipeline.feed import Feed
from pipeline.loader import BAD, Loader
from pipeline.stats import Stats
from shards.errors import InputError
from shards.files import atomic_write
from shards.manifest import Dataset
from shards.progress import Progress
from shards.remote import Remote
from trainer import checkpoint, metrics
from trainer.alexnet import AlexNet
from trainer.evaluate import evaluate
from trainer.launch import Place, launch
from trainer.recipe import LARS, PLATEAU, PaperSGD, large_batch_rate, learning_rate
from trainer.stopping import Stopped, StopRequest
from trainer.towers import Layout, replicate

# What makes a run the run that it is: a resumed one must agree in these. Devices and lengths may differ.
IDENTITY = (*("dataset", "batch_size", "recipe", "lr", "lr_steps", "patience", "seed", "dropout", "width", "mean"),)


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
    given); batch_size: of the global batch; recipe: "paper" or "large-batch", see `trainer.recipe`; lr_steps: epochs at
    whose start the rate is divided by ten, or "plateau"; patience: evaluations that make a plateau; mean: see
    `pipeline.feed.Feed`; max_bad: see `pipeline.loader.Loader`; decoding: what is chosen of
    `pipeline.settings.Settings`, by name; resume: continue from the newest checkpoint of `out`; checkpoint_every,
    log_every: steps; keep: checkpoints; eval_every: epochs; final_crops: 10 adds the paper's ten-crop test at the end;
    tensorboard: see `trainer.metrics.Journal`; profile: the first and last step to trace.
    Raises: InputError; `trainer.stopping.Stopped` when it was asked to stop, after a checkpoint.
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
            differing = [f"{key} was {old[key]}, now {config[key]}" for key in IDENTITY if old[key] != config[key]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a run's configuration ({error!r}): choose another --out") from None
        if differing:
            raise InputError(f"{out} holds a run that differs ({'; '.join(differing)}): choose another --out")
    elif checkpoint.all_of(out):
        raise InputError(f"{out} holds checkpoints of a run but not its config.json: choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}") from None


def train_rank(place: Place, data: Path | Remote, out: Path, config: dict) -> None:
    """One rank's part of a training run."""
    dataset = Dataset.load(data)
    stats = Stats.load(dataset.root)
    config["decoding"] = place.settings(config["decoding"], dataset.size)._asdict()
    shared = {"stats": stats, "batch_size": config["batch_size"], "max_bad": config["max_bad"]}
    shared |= {**place.loading, **config["decoding"]}
    feed = Feed(stats, config["mean"], place.device)
    loader = Loader(dataset, "train", "train", seed=config["seed"], **shared)
    val = Loader(dataset, "val", "centre", **shared) if "val" in dataset.splits else None
    last = config["steps"] or config["epochs"] * loader.batches
    first = place.rank == 0

    net = AlexNet(len(dataset.classes), config["width"], config["dropout"], place.layout)
    net.initialise(config["seed"])
    net.to(place.device)
    optimiser = optimiser_of(config["recipe"], net, config["lr"])
    step = 0
    newest = checkpoint.newest(out, lambda text: print(text, file=sys.stderr) if first else None)
    if newest:
        step = checkpoint.restore(newest, net, optimiser)
    trained = replicate(net, place.layout)
    errors = [line["top1_error"] for line in metrics.read(out, "eval") if line["step"] <= step and line["crops"] == 1]
    journal = None
    if first:
        with atomic_write(out / "config.json") as file:
            file.write(json.dumps(config, indent=1).encode())
        journal = metrics.Journal(out, step, config["tensorboard"])
        if step:
            print(f"Resumed after step {step} of {last}" + (": nothing is left to do" if step >= last else ""))

    rng, clock, writer = torch.Generator(place.device), metrics.Clock(), checkpoint.Writer(out, first, config["keep"])
    tracer = Tracer(config["profile"], out) if first else None
    left = (last - step) * config["batch_size"]
    loss = before = None
    with StopRequest(place.world) as stop, Progress("train", left, lines=False, quiet=not first) as progress:
        while step < last:
            epoch = step // loader.batches
            place.agree_on_bad(loader)
            for batch in clock.waiting(loader.epoch(epoch, start=step % loader.batches)):
                rate = rate_at(step, loader.batches, config, errors)
                optimiser.param_groups[0]["lr"] = rate
                images, labels = place.whole(batch, feed)
                before, loss = (
                    loss,
                    train_step(trained, place.layout, optimiser, images, labels, rng, config["seed"], step),
                )
                # Of the step before: a GPU has one to work on while this waits
                check_finite(before, step, loader, rate, out)
                step += 1
                clock.pictures += config["batch_size"]
                progress.advance(config["batch_size"])
                if tracer:
                    tracer.made(step)
                stops = stop.agreed()
                ends_epoch = step % loader.batches == 0
                saves = step % config["checkpoint_every"] == 0 or step == last or stops
                best = False
                if step % config["log_every"] == 0 or step in (1, last) or stops:
                    value = place.layout.replicas.sum(loss.clone()).item()  # waits for the device, then comes the clock
                    if first:
                        seen = clock.look()
                        journal.add({"kind": "train", "step": step, "epoch": epoch, "loss": value, "lr": rate, **seen})
                        told = f"loss {value:.4f} data wait {seen['data_wait']:.0%}"
                        progress.note(told + (f" val top-1 {errors[-1]:.1%}" if errors else ""))
                        progress.say(
                            f"step {step}/{last} epoch {epoch} {told} lr {rate:g} {seen['img_per_s']:.0f} img/s"
                        )
                with clock.paused():
                    if val and not stops and (step == last or (ends_epoch and (epoch + 1) % config["eval_every"] == 0)):
                        result = evaluate(net, val, feed, place)
                        best = result["top1_error"] < min(errors, default=math.inf)
                        errors.append(result["top1_error"])
                        if first:
                            record(journal, progress, step, last, epoch, 1, result)
                        if step == last and config["final_crops"] == 10:
                            ten = Loader(dataset, "val", "ten", **{**shared, **smaller(config["batch_size"], place)})
                            result = evaluate(net, ten, feed, place)
                            if first:
                                record(journal, progress, step, last, epoch, 10, result)
                    # After the evaluation, so that a resumed run need not repeat it
                    if saves or best:
                        check_finite(loss, step, loader, rate, out)
                        writer.save(step, net, optimiser, config, best)
                if stops or step == last:
                    break
            if stops:
                break
        writer.wait()
        if stops_early := step < last:
            place.meet()  # or a process that is done first would have the others ended
            if first:
                progress.say(f"stopped after step {step} of {last} as asked: --resume auto continues")
    if stops_early:
        raise Stopped


def optimiser_of(recipe: str, net: AlexNet, lr: float) -> PaperSGD:
    """The optimiser of a `--recipe`."""
    if recipe == "paper":
        return PaperSGD(net.parameters(), lr)
    return LARS(net, lr, lambda layer, squares: net.holders(layer).sum(squares))


def rate_at(step: int, batches: int, config: dict, errors: Sequence[float]) -> float:
    """The learning rate of the update after `step` of them, `batches` of which are an epoch."""
    rate = learning_rate(config["lr"], step // batches, config["lr_steps"], errors, config["patience"])
    return rate if config["recipe"] == "paper" else large_batch_rate(rate, config["batch_size"], step / batches)


def smaller(batch_size: int, place: Place) -> dict:
    """A batch of so many fewer pictures that ten crops of each are about as many."""
    return {"batch_size": -(-batch_size // 10 // place.world) * place.world}


def record(journal: metrics.Journal, progress: Progress, step: int, last: int, epoch: int, crops: int, result: dict):
    """An evaluation's line, for machine and man."""
    journal.add({"kind": "eval", "step": step, "epoch": epoch, "crops": crops, **result})
    progress.say(
        f"step {step}/{last} epoch {epoch} val error{' of ten crops' * (crops > 1)}: top-1 {result['top1_error']:.1%}, "
        f"top-5 {result['top5_error']:.1%} of {result['samples']}"
    )


def check_finite(loss: torch.Tensor | None, step: int, loader: Loader, rate: float, out: Path) -> None:
    """Raises InputError, with the pictures and the checkpoint to go back to, when the loss of `step` is no number."""
    if loss is None or math.isfinite(value := loss.item()):
        return
    keys = loader.keys(*divmod(step - 1, loader.batches))
    named = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    remedy = f"lower --lr (now {rate:g}); {checkpoint.last_good(out)}"
    raise InputError(f"the loss is {value} at step {step}, of the pictures {named}: {remedy}")


class Tracer:
    """Traces the steps of `--profile` with torch.profiler into `trace-FIRST-LAST.json`, for chrome://tracing."""

    def __init__(self, steps: tuple[int, int] | None, out: Path):
        self.steps, self.out, self.running = steps, out, contextlib.ExitStack()

    def made(self, step: int) -> None:
        """So many steps are done."""
        if self.steps and step == self.steps[0] - 1:
            self.profiler = self.running.enter_context(torch.profiler.profile())
        if self.steps and step == self.steps[1]:
            self.running.close()
            self.profiler.export_chrome_trace(str(self.out / f"trace-{self.steps[0]}-{self.steps[1]}.json"))


def train_step(
    trained: nn.Module, layout: Layout, optimiser, images, labels, rng: torch.Generator, seed: int, step: int
) -> torch.Tensor:
    """One update on a global batch; returns this replica's share of the mean loss over it, a scalar on the device: the
    shares add up. `trained` is what `trainer.towers.replicate` made; `step` counts the updates before."""
    rng.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1))
    good = layout.replicas.sum((labels != BAD).sum())
    loss = layout.dense.cross_entropy(trained(images, rng), labels, ignore=BAD) / good
    optimiser.zero_grad()
    (loss * layout.replicas.size).backward()  # DistributedDataParallel takes the replicas' mean, and it is their sum
    optimiser.step()
    return loss.detach()
