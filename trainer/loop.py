"""The training loop: batches in; `config.json`, `metrics.jsonl` and checkpoints out (paper, section 5).

All randomness is a function of (seed, epoch, step), none of it is state: the order and the draws of the data come from
the loader, the dropout masks from a generator that is seeded anew each step. So a resumed run is the unbroken run, and
two processes are one.
"""

import json
import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nvidia import dali

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
from trainer.recipe import PaperSGD, learning_rate

# What makes a run the run that it is: a resumed one must agree in these. Devices and lengths may differ.
IDENTITY = ("dataset", "batch_size", "lr", "lr_steps", "seed", "dropout", "width", "mean")


def train(
    data: Path | Remote,
    out: Path,
    *,
    gpus: int | None = None,
    device: str = "auto",
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float = 0.01,
    lr_steps: Sequence[int] = (25, 51, 79),
    seed: int = 0,
    dropout: float = 0.5,
    width: float = 1.0,
    mean: str = "image",
    max_bad: float = 0.001,
    decoding: dict | None = None,
    resume: bool = False,
    checkpoint_every: int = 1000,
    log_every: int = 10,
    eval_every: int = 1,
) -> None:
    """Trains on DIR's train split and evaluates on its val split, in one process a device.

    Args: epochs or steps: how long (90 epochs when neither is given); batch_size: of the global batch; lr_steps: epochs
    at whose start the rate is divided by ten; mean: see `pipeline.feed.Feed`; max_bad: see `pipeline.loader.Loader`;
    decoding: what is chosen of `pipeline.settings.Settings`, by name;
    resume: continue from the newest checkpoint of `out`; checkpoint_every, log_every: steps; eval_every: epochs.
    Raises: InputError.
    """
    if epochs is not None and steps is not None:
        raise InputError("--epochs and --steps both say how long to train: give one of them")
    dataset = Dataset.load(data)
    Stats.load(dataset.root)
    dataset.split("train")
    config = {
        "dataset": dataset.fingerprint,
        "data": str(data),
        "classes": list(dataset.classes),
        "gpus": gpus,
        "device": device,
        "epochs": 90 if epochs is None and steps is None else epochs,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "lr_steps": list(lr_steps),
        "seed": seed,
        "dropout": dropout,
        "width": width,
        "mean": mean,
        "max_bad": max_bad,
        "decoding": decoding or {},
        "checkpoint_every": checkpoint_every,
        "log_every": log_every,
        "eval_every": eval_every,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "dali": dali.__version__},
    }
    check_run_folder(out, config, resume)
    launch(train_rank, gpus, device, data, out, config)


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
    elif checkpoint.latest(out):
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

    net = AlexNet(len(dataset.classes), config["width"], config["dropout"], place.towers)
    net.initialise(config["seed"])
    net.to(place.device)
    optimiser = PaperSGD(net.parameters(), config["lr"])
    step = 0
    newest = checkpoint.latest(out)
    if newest:
        step = checkpoint.restore(checkpoint.read(newest), net, optimiser, place.towers)
    if place.rank == 0:
        with atomic_write(out / "config.json") as file:
            file.write(json.dumps(config, indent=1).encode())
        metrics.rewind(out, step)
        if step:
            print(f"Resumed after step {step} of {last}" + (": nothing is left to do" if step >= last else ""))

    rng = torch.Generator(place.device)
    images_per_step = config["batch_size"]
    with Progress("train", (last - step) * images_per_step, lines=False, quiet=place.rank > 0) as progress:
        since, logged = time.perf_counter(), step
        while step < last:
            epoch = step // loader.batches
            rate = learning_rate(config["lr"], epoch, config["lr_steps"])
            optimiser.param_groups[0]["lr"] = rate
            place.agree_on_bad(loader)
            for batch in loader.epoch(epoch, start=step % loader.batches):
                loss = train_step(net, optimiser, *place.whole(batch, feed), rng, config["seed"], step)
                step += 1
                progress.advance(images_per_step)
                saves = step % config["checkpoint_every"] == 0 or step == last
                logs = step % config["log_every"] == 0 or step in (1, last)
                if saves or logs:
                    value = loss.item()  # waits for the device, so the clock is read after it
                    if not math.isfinite(value):
                        raise InputError(f"the loss is {value} at step {step}: lower --lr (now {rate:g})")
                if logs:
                    speed = (step - logged) * images_per_step / (time.perf_counter() - since)
                    if place.rank == 0:
                        line = {"kind": "train", "step": step, "epoch": epoch, "loss": value, "lr": rate}
                        metrics.append(out, {**line, "img_per_s": round(speed, 1)})
                        progress.say(f"step {step}/{last} epoch {epoch} loss {value:.4f} lr {rate:g} {speed:.0f} img/s")
                    since, logged = time.perf_counter(), step
                ends_epoch = step % loader.batches == 0
                pause = time.perf_counter()
                if val and (step == last or (ends_epoch and (epoch + 1) % config["eval_every"] == 0)):
                    result = evaluate(net, val, feed, place)
                    if place.rank == 0:
                        metrics.append(out, {"kind": "eval", "step": step, "epoch": epoch, **result})
                        progress.say(
                            f"step {step}/{last} epoch {epoch} val error: top-1 {result['top1_error']:.1%}, "
                            f"top-5 {result['top5_error']:.1%} of {result['samples']}"
                        )
                # After the evaluation, so that a resumed run need not repeat it
                if saves:
                    checkpoint.save(out, step, net, optimiser, place.towers, config)
                since += time.perf_counter() - pause  # img/s is of training alone
                if step == last:
                    return


def train_step(net, optimiser, images, labels, rng: torch.Generator, seed: int, step: int) -> torch.Tensor:
    """One update on a global batch; returns the loss, a scalar on the device. `step` counts the updates before."""
    rng.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1))
    loss = F.cross_entropy(net(images, rng), labels, ignore_index=BAD)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach()
