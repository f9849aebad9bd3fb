"""The whole way in one command, on images it renders itself: shards, statistics, two towers, errors."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inference.figures import kernels
from inference.trained import Trained
from pipeline.compute_stats import complete
from pipeline.loader import Loader
from pipeline.order import Augmentation
from pipeline.preview import batch_grid
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.synthetic import render_folders
from trainer import metrics
from trainer.config import TrainConfig
from trainer.run_folder import find_checkpoint
from trainer.train import train

CLASSES = 10
WIDTH = 0.25
BATCH_SIZE = 32
# With the paper's initial weights, lr and dropout a run as short as this ends with an error of 8.9 to 24.5 %, by its
# seed; with these ten seeds lie within 2.1 points (bench/results/demo-seeds-h200.json)
VARIANT, LR, DROPOUT = "release-2012", 0.005, 0.25


def run(out: Path, short: bool, device: str, seed: int) -> dict[str, Any]:
    """Renders, shards, trains and reports under `out`; returns the last evaluation's line. Args: seed: of the training.

    The run is not the paper's, and says so: a quarter of the kernels, smaller batches and a short schedule.
    """
    began = time.perf_counter()
    train_images, val_images, steps = (1200, 400, 240) if short else (2400, 1000, 600)
    images, data, run_folder = out / "images", out / "shards", out / "run"
    gpus = 1 if torch.cuda.device_count() == 1 and device != "cpu" else 2
    print(
        f"Demo: AlexNet at --width {WIDTH} (a quarter of the paper's kernels), --variant {VARIANT},\n"
        f"--lr {LR}, --dropout {DROPOUT}, batches of {BATCH_SIZE} and {steps} steps, so that it learns\n"
        "while you wait; `train` by default does what the paper does."
    )
    render_folders(images, classes=CLASSES, train=train_images, val=val_images, seed=0)
    dataset = write_dataset(images, data, ConvertOptions(size=256, shard_size=16 * 2**20))
    complete(dataset)
    train(
        TrainConfig(
            data,
            run_folder,
            gpus=gpus,
            device=device,
            steps=steps,
            batch_size=BATCH_SIZE,
            lr=LR,
            lr_steps=(6,),
            seed=seed,
            width=WIDTH,
            variant=VARIANT,
            dropout=DROPOUT,
            compile=False,  # on a GPU it took 20 s and more, and these steps are few and small
            log_every=20,
            eval_every=4,
        )
    )

    drawn = draw(data, run_folder, out)
    result = metrics.read(run_folder, "eval")[-1]
    speeds = [line["img_per_s"] for line in metrics.read(run_folder, "train")[1:]]
    chance = 1 - 1 / CLASSES
    print(
        f"\nHeld-out error after {result['step']} steps on {result['samples']} images: "
        f"top-1 {result['top1_error']:.1%} (chance {chance:.0%}), top-5 {result['top5_error']:.1%} (chance 50%)\n"
        f"Training: {np.median(speeds):.0f} images per second (median), {time.perf_counter() - began:.0f} s for all\n"
        f"Images, shards, run: {images}, {data}, {run_folder}\n" + "\n".join(drawn) + "\n"
        f"Ask it: python cli.py predict --checkpoint {run_folder} {images / 'val'}"
    )
    return result


def draw(data: Path, run_folder: Path, out: Path) -> list[str]:
    """Writes a training batch and the conv1 kernels as images; returns a line for each."""
    dataset, stats = Dataset.load(data), Stats.load(data)
    settings, augmentation = Settings(threads=1), Augmentation(stats)
    loader = Loader(dataset, "train", "train", batch_size=32, settings=settings, augmentation=augmentation)
    batch = next(loader.epoch(0))
    batch_file, kernel_file = out / "batch.png", out / "conv1.png"
    batch_grid(batch, dataset.classes).save(batch_file)
    kernels(Trained.load(find_checkpoint(run_folder), torch.device("cpu"))).save(kernel_file)
    return [f"A training batch as the model sees it: {batch_file}", f"The conv1 kernels it learned: {kernel_file}"]
