"""`python -m bench.studies.step`: measures, shows the figures and records them."""

import json
import warnings
from pathlib import Path
from typing import Any

import click
import torch

from bench.harness.machine import describe_machine
from bench.harness.record import heading, json_option, write_report
from bench.studies import step as study
from bench.studies.step.contestants import BATCH, RATIOS, STEPS, measure_steps, take_turn
from bench.studies.step.normalization import fuser, measure_normalization
from shards.processes import cores
from trainer.model_parallel import unsharded_layout
from trainer.rank import RankContext, reuse_memory

TARGETS = {"TorchScript": "target 4", "compiled": "target 8"}  # times as fast as torch's


def show_normalization(report: dict[str, Any]) -> None:
    for layer, figures in report["normalisation"].items():
        print(f"{layer}: tensors kept {figures['tensors_kept_for_the_backward']}")
        for name, spent in figures["seconds"].items():
            times = figures["times_torch"].get(name, {"median": 1.0})["median"]
            print(f"  {name:<14}{1e3 * spent['median']:>8.0f} ms{times:>8.2f} x torch  {TARGETS.get(name, '')}")
        for figure in ("kernels_launched", "share_of_copy_bandwidth"):
            if figure in figures:
                print(f"  {figure}: {figures[figure]}")
    print(f"TorchScript's fuser: {report['fuser']}")


def show_steps(steps: dict[str, Any]) -> None:
    print(f"step, batch {BATCH}: {'img/s':>14}{'of what the products allow':>30}")
    for name, rate in steps["img_per_s"].items():
        share = steps["share_of_the_products_rate"][name]["median"]
        print(f"  {name:<24}{rate['median']:>9.1f}{share:>20.2f}{'  target 0.45, then 0.6' * (name == 'ours')}")
    for name, ratio in steps["ratios"].items():
        target = RATIOS[name][2]
        print(f"  {name:<24}{ratio['median']:>9.2f}{f'  target {target}' if target else ''}")


@click.command(help=(study.__doc__ or "").replace("\n\n", "\n\n\b\n"))
@click.option("--rounds", default=5, show_default=True, help="Turns of each contestant.")
@click.option("--steps", default=3, show_default=True, help="Training steps in a turn.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@json_option
@click.option("--one", type=click.Choice(STEPS), hidden=True, help="Take one contestant's turn and print it as JSON.")
def main(rounds: int, steps: int, device: str, json_path: Path | None, one: str | None) -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    where = torch.device(device, 0) if device == "cuda" else torch.device("cpu")
    if one:
        print(json.dumps(take_turn(one, where, steps)))
        return
    report = {**heading(describe_machine(RankContext(where, 0, 1, unsharded_layout(), cores()))), "batch_size": BATCH}
    report["step"] = measure_steps(device, rounds, steps)
    # After the steps, whose processes must not find the memory that is kept here
    torch.set_num_threads(cores())
    if device == "cpu":
        reuse_memory()
    report["normalisation"], report["fuser"] = measure_normalization(where, rounds), fuser(where)
    show_normalization(report)
    show_steps(report["step"])
    write_report(json_path, report)


if __name__ == "__main__":
    main()
