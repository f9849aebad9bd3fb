"""The training loop: batches in; `config.json`, `metrics.jsonl` and checkpoints out (paper, section 5).

All randomness is a function of (seed, epoch, step), none of it is state: the order and the augmentation of the data
come from the loader, the dropout masks from a generator that is seeded again at each step. So a resumed run is the
unbroken run, and two processes are one.
"""

import contextlib
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nvidia import dali

from pipeline.loader import Batch, Loader
from pipeline.order import Augmentation
from pipeline.preprocess import Preprocess
from pipeline.samples import small_set_note
from pipeline.settings import prepare_environment
from pipeline.stats import FILE as STATS_FILE
from pipeline.stats import Stats
from shards.atomic import locked
from shards.console import notice
from shards.dataset import VAL_REMEDY, Dataset
from shards.errors import InputError
from shards.progress import Progress
from shards.remote import locate
from shards.wording import counted
from trainer import checkpoint, metrics
from trainer.alexnet import model_from_config
from trainer.config import TrainConfig
from trainer.cuda_graph import check_cuda_graphs, choose_compilation, left_out
from trainer.evaluate import evaluate, ten_crop_batch_size
from trainer.kernels import kernel_images
from trainer.launch import choose_device, launch
from trainer.loss_watch import LossWatch
from trainer.model_parallel import replicate
from trainer.optimizer import build_optimizer
from trainer.precision import Precision, compile_model
from trainer.preemption import Preempted, PreemptionHandler
from trainer.profiler import Profiler
from trainer.rank import RankContext
from trainer.run_folder import (
    add_bad_samples,
    as_begun,
    check_run_folder,
    check_start,
    describe_data,
    find_checkpoint,
    recorded_options,
    resumes,
    write_config,
)
from trainer.schedule import lr_at
from trainer.started import started
from trainer.summary import summary
from trainer.tensorboard import TensorBoard, summary_writer_class
from trainer.train_step import TrainStep
from trainer.transfer import start_from

NAMED = 8  # images that a message lists; more go to a file


def train(config: TrainConfig) -> None:
    """Trains on the train split and evaluates on the val split, in one process a device.

    Raises: InputError; `trainer.preemption.Preempted` when it was asked to stop, after a checkpoint.
    """
    if config.tensorboard:
        summary_writer_class()
    config = with_compilation(config)
    check_start(config)
    launch(train_rank, config.gpus, config.device, config, parallel=config.parallel, batch_size=config.batch_size)


def with_compilation(config: TrainConfig) -> TrainConfig:
    """The same with `compile` and `cuda_graphs` decided: as the run in its folder has them, or by the device,
    and then what that leaves out is said."""
    before = recorded_options(config.out)
    compile = before.get("compile") if config.compile is None else config.compile
    cuda_graphs = before.get("cuda_graphs") if config.cuda_graphs is None else config.cuda_graphs
    prepare_environment()
    kind = choose_device(config.device, 1, quiet=True)
    process = started()
    world_size = process.world_size if process else config.gpus or 1
    if (line := left_out(compile, kind, world_size)) and (process is None or process.rank == 0):
        notice(line)
    compile, cuda_graphs = choose_compilation(compile, cuda_graphs, kind, world_size)
    return replace(config, compile=compile, cuda_graphs=cuda_graphs)


class Begun(NamedTuple):
    """What a run's folder holds of the run that is to be continued: the content of its `config.json`, and its newest
    intact checkpoint. Each is None when there is none."""

    record: dict[str, Any] | None
    newest: Path | None


def claim_run_folder(config: TrainConfig, dataset: Dataset, stack: contextlib.ExitStack) -> Begun:
    """Takes the run's folder until the stack ends, and tells what it holds. Raises InputError when it cannot take this
    run: another command may have begun one in it since it was last looked at."""
    # What is left of a killed run's processes may still be on its last step
    stack.enter_context(locked(config.out, wait=30))
    record = check_run_folder(config, dataset, resumes(config))
    return Begun(record, checkpoint.newest_valid(config.out, notice))


def train_rank(context: RankContext, config: TrainConfig) -> None:
    """One rank's part of a training run."""
    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(PreemptionHandler(context.world_size))
        dataset = Dataset.load(locate(config.data, config.cache, config.cache_size))
        begun = claim_run_folder(config, dataset, stack) if context.rank == 0 else None
        begun = context.broadcast(begun)
        assert begun
        Trainer(context, config, as_begun(dataset, begun.record), begun.newest).run(preemption, stack)


class Trainer:
    """One rank's part of a run: its data, its part of the model, and the loop over the steps.

    `step` counts the steps made; `errors` has the validation top-1 error by the step that it was measured after. Rank 0
    alone writes to the run's folder.

    Args: dataset: as the run began with it; newest: the checkpoint to continue from.
    """

    # Opened when the run begins, for they touch its folder
    preemption: PreemptionHandler
    train_step: TrainStep
    writer: checkpoint.CheckpointWriter
    logger: metrics.MetricsLogger | None
    board: TensorBoard | None
    progress: Progress
    profiler: Profiler | None

    def __init__(self, context: RankContext, config: TrainConfig, dataset: Dataset, newest: Path | None):
        if config.cuda_graphs:
            check_cuda_graphs(context.device, context.world_size)
        self.context, self.config, self.is_first = context, config, context.rank == 0
        self.dataset = dataset
        state = checkpoint.parse(newest) if newest else None
        self.stats = self._stats_of(state, newest) if state and newest else Stats.load(dataset.root)
        self.settings = context.settings(config.decoding, self.dataset.size)
        self.precision = Precision(config.precision, context.device, context.world_size)
        self.preprocess = Preprocess(self.stats, config.mean, context.device, self.precision.dtype)
        self.loader = self._loader("train", "train", config.batch_size)
        self.val_loader = self._loader("val", "center", config.batch_size) if "val" in self.dataset.splits else None
        self.steps_per_epoch = self.loader.num_batches
        self.last_step = config.steps or (config.recorded()["epochs"] * self.steps_per_epoch)

        self.model = model_from_config(config, len(self.dataset.classes), context.layout)
        self.model.init_weights(config.seed)
        if config.init and not state:
            lines = start_from(self.model, find_checkpoint(config.init, option="--init"), self.dataset.classes)
            if self.is_first:
                notice("\n".join(lines))
        self.model.to(context.device)
        self.optimizer = build_optimizer(config.recipe, self.model, config.lr)
        self.step, self.errors, self.preempted = 0, dict[int, float](), False
        self.loss: torch.Tensor | None = None
        self.losses = LossWatch()
        self.lr = config.lr
        self.saved = (0, False)  # the step of the newest checkpoint, and whether that holds its evaluation
        self.batches: Iterator[Batch] | None = None
        self.timer = metrics.StepTimer(context.device)
        self.shown = False  # whether TensorBoard has what is shown once
        self.warm = not (config.compile or config.cuda_graphs)  # otherwise the first step is a warm-up
        if state:
            self.step = checkpoint.restore(state, self.model, self.optimizer)
            self.errors = dict(state["errors"])
            self.precision.load_state_dict(state["precision"])

    def run(self, preemption: PreemptionHandler, stack: contextlib.ExitStack) -> None:
        """Trains to the last step, or until asked to stop. Raises Preempted then, after a checkpoint.

        Args: stack: holds the run's folder, and gets what else is open until the run ends.
        """
        self._open(preemption, stack)
        # A run that ended between a checkpoint and its evaluation begins with that
        self.evaluate_if_due()
        self.save_if_due()
        while self.step < self.last_step and not self.preempted:
            self.train_one_step()
            self.log_if_due()
            self.preempted = self.preemption.should_stop()
            self.save_if_due()
            self.evaluate_if_due()
            self.save_if_due()
        self.writer.wait()
        if self.logger:
            self.logger.write_all()
        self._record_bad_samples()
        if self.preempted:
            self.context.barrier()  # otherwise a process that is done first would have the others ended
            if self.is_first:
                reached = f"stopped after step {self.step} of {self.last_step} as asked"
                self.progress.say(f"{reached}: --resume auto continues", ended=True)
            raise Preempted
        if self.is_first:
            self.progress.say(summary(self.config.out, self.dataset.where), ended=True)

    def train_one_step(self) -> None:
        """One update of the weights by a global batch."""
        try:
            images, labels = self._next_batch()
        except InputError:
            if self.context.world_size == 1:  # otherwise the other ranks do not know of it, and each holds a part
                self._record_bad_samples()
                self._save()
            raise
        self._show_once(images)
        self.lr = lr_at(self.step, self.steps_per_epoch, self.config, list(self.errors.values()))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_scale"]
        self.loss = self.train_step(images, labels, self.step) if self.warm else self._warm_up(images, labels)
        self.writer.check()
        self.step += 1
        self.losses.add(self.step, self.loss)
        self._check_finite()
        if self.warm:
            self.timer.images += self.config.batch_size
        self.warm = True
        self.progress.advance(self.config.batch_size)
        if self.profiler:
            self.profiler.step_done(self.step)

    def _warm_up(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The first step, which is compiled or recorded, and which no clock counts."""
        work = {"compiling": self.config.compile, "recording a CUDA graph": self.config.cuda_graphs}
        doing = " and ".join(name for name, wanted in work.items() if wanted)
        self.progress.say(f"{doing}, for a minute or so (--no-compile, --no-cuda-graphs)", ended=True)
        began = time.monotonic()
        with self.timer.paused():
            loss = self.train_step(images, labels, self.step)
        self.progress.say(f"{doing} took {time.monotonic() - began:.0f} s", ended=True)
        return loss

    def log_if_due(self) -> None:
        """Logs a step's line: every `log_every`-th one, the first and the last."""
        if self.step % self.config.log_every and self.step not in (1, self.last_step):
            return
        assert self.loss is not None
        # Waits for the device; only then is the timer read
        loss = self.context.layout.replicas.all_reduce(self.loss.clone()).item()
        if self.logger:
            line = {"kind": "train", "step": self.step, "epoch": self._epoch, "loss": loss, "lr": self.lr}
            line |= self.timer.lap()
            self.logger.log(line)
            self._show_step(line)

    def evaluate_if_due(self) -> None:
        """Evaluates after the last step and at the end of each `eval_every`-th epoch, unless that is done already. An
        evaluation that a request to stop breaks off is made by the run that continues."""
        if not self._evaluation_is_due() or not self.val_loader:
            return
        with self.timer.paused():
            views = [(1, self.val_loader)]
            if self.step == self.last_step and self.config.final_crops == 10:
                batch_size = ten_crop_batch_size(self.config.batch_size, self.context.world_size)
                views.append((10, self._loader("val", "ten", batch_size)))
            results = [(crops, self._evaluate(loader)) for crops, loader in views]
        whole = [(crops, result) for crops, result in results if result is not None]
        self.preempted = len(whole) < len(results)
        if not self.preempted:
            self.errors[self.step] = whole[0][1]["top1_error"]
            for crops, result in whole if self.is_first else ():
                self._show_evaluation(crops, result)

    def save_if_due(self) -> None:
        """Writes a checkpoint every `checkpoint_every` steps, after the last step or a request to stop, and at an
        evaluation: before it, so that an error in it loses nothing, and after a best or a last one, so that a resumed
        run need not repeat that."""
        due = self.preempted or self.step == self.last_step or self.step % self.config.checkpoint_every == 0
        if due or self._evaluation_is_due() or self._is_best():
            self._save()

    def _save(self) -> None:
        """Writes a checkpoint of the last step, unless that is written already."""
        state = (self.step, self.step in self.errors)
        if state == self.saved:
            return
        with self.timer.paused():
            self._check_finite(wait=True)
            kept = {
                "config": self.record,
                "errors": list(self.errors.items()),
                "precision": self.precision.state_dict(),
            }
            self.writer.save(self.step, self.model, self.optimizer, kept, best=self._is_best())
            if state[0] != self.saved[0]:
                self._show_kernels()
            self.saved = state

    @cached_property
    def record(self) -> dict[str, Any]:
        """What `config.json` and the checkpoints hold of this run."""
        return {
            **self.config.recorded(),
            **describe_data(self.dataset),
            "decoding": self.settings._asdict(),
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "dali": dali.__version__,
            },
        }

    def _stats_of(self, state: dict[str, Any], newest: Path) -> Stats:
        """What the run subtracts and adds, from its checkpoint, whatever the data set has by now."""
        report = notice if self.is_first else lambda text: None
        stats = checkpoint.stats_of(state, newest, self.dataset, report)
        try:
            unchanged = stats.equals(Stats.load(self.dataset.root))
        except InputError:
            unchanged = False
        if not unchanged:
            path = self.dataset.root / STATS_FILE
            report(f"{path} is not what the run began with: it goes on with the mean and components in {newest.name}")
        return stats

    def _open(self, preemption: PreemptionHandler, stack: contextlib.ExitStack) -> None:
        """Makes the model ready for its first step, and opens the logs."""
        context, config, run = self.context, self.config, self.config.out
        self.preemption = preemption
        self.saved = (self.step, self.step in self.errors)
        trained = replicate(self.model, context.layout)
        if config.compile:
            trained = compile_model(trained, context.device)
        step = (context.layout, self.optimizer, self.precision, context.device, config.seed, bool(config.cuda_graphs))
        self.train_step = TrainStep(trained, *step)
        self.logger = self.board = None
        if self.is_first and not self.val_loader:
            ignored = ", and --final-crops 10 is ignored" if config.final_crops == 10 else ""
            notice(f"{self.dataset.where} has no val split: nothing is evaluated{ignored} ({VAL_REMEDY})")
        if self.is_first and (note := small_set_note(len(self.loader.samples), config.batch_size)):
            notice(note)
        if self.is_first:
            write_config(run, self.record)
            self.board = TensorBoard(run, self.step) if config.tensorboard else None
            also = self.board.line if self.board else None
            self.logger = metrics.MetricsLogger(run, self.step, self.step in self.errors, also)
            if self.step:
                done = self.step >= self.last_step and not self._evaluation_is_due()
                ending = ": nothing is left to do" if done else ""
                notice(f"Resumed after step {self.step} of {self.last_step}{ending}")
        # Only now: it clears away what a killed run left half-written
        self.writer = stack.enter_context(checkpoint.CheckpointWriter(run, self.is_first, config.keep, self.stats))
        self.profiler = stack.enter_context(Profiler(config.profile, run)) if self.is_first else None
        images = (self.last_step - self.step) * config.batch_size
        self.progress = stack.enter_context(Progress("train", images, lines=False, quiet=not self.is_first))

    def _loader(self, split: str, view: str, batch_size: int) -> Loader:
        return Loader(
            self.dataset,
            split,
            view,
            batch_size=batch_size,
            settings=self.settings,
            rank_slice=self.context.rank_slice,
            augmentation=Augmentation(
                self.stats if self.config.lighting else None, self.config.seed, self.config.shuffle
            ),
            max_bad=self.config.max_bad,
        )

    def _next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.batches is None or self.step % self.steps_per_epoch == 0:
            self.context.share_bad_samples(self.loader)
            self._record_bad_samples()
            epoch, start = divmod(self.step, self.steps_per_epoch)
            self.batches = self.timer.time_waiting(self.loader.epoch(epoch, start=start))
        return self.context.gather_batch(next(self.batches), self.preprocess)

    def _record_bad_samples(self) -> None:
        """Writes to the run's folder which images could not be decoded, on any rank."""
        found = {
            name: why for named in self.context.gather(self.loader.bad_samples.named()) for name, why in named.items()
        }
        try:
            if self.is_first:
                add_bad_samples(self.config.out, found)
        except InputError as error:  # of a full disk, which does not end a run; each was named when it was found
            notice(str(error))

    def _evaluate(self, loader: Loader) -> dict[str, Any] | None:
        batches, should_stop = loader.epoch(0), self.preemption.should_stop
        return evaluate(self.model, batches, self.preprocess, self.context, self.precision, should_stop=should_stop)

    @property
    def _epoch(self) -> int:
        """The epoch of the last step, from 0."""
        return (self.step - 1) // self.steps_per_epoch

    def _evaluation_is_due(self) -> bool:
        """Whether the last step is one to evaluate after, and that is not done yet."""
        if not self.val_loader or self.preempted or self.step in self.errors:
            return False
        at_epoch_end = self.step > 0 and self.step % (self.steps_per_epoch * self.config.eval_every) == 0
        return self.step == self.last_step or (at_epoch_end and self.step < self.last_step)

    def _is_best(self) -> bool:
        """Whether the last step's validation error is lower than all before."""
        before = [error for step, error in self.errors.items() if step != self.step]
        return self.errors.get(self.step, math.inf) < min(before, default=math.inf)

    def _show_once(self, images: torch.Tensor) -> None:
        """Before this process's first step: the run's options, its first batch and its kernels, in TensorBoard."""
        if not self.config.tensorboard or self.shown:
            return
        self.shown = True
        with self.timer.paused():
            if self.board:
                about = {name: value for name, value in self.record.items() if name not in ("classes", "words")}
                self.board.options(about, self.step)
                self.board.batch(images, self.preprocess, self.step + 1)
            self._show_kernels()

    def _show_kernels(self) -> None:
        """conv1's kernels in TensorBoard; all ranks take part."""
        if self.config.tensorboard:
            towers = kernel_images(self.model)
            if self.board:
                self.board.kernels(towers, self.step)

    def _show_step(self, line: dict[str, Any]) -> None:
        """A step on the console: in the bar on a terminal, otherwise a line of its own."""
        text = metrics.step_text(line)
        validated = f" val top-1 {list(self.errors.values())[-1]:.1%}" if self.errors else ""
        self.progress.note(text + validated, f"step {self.step}/{self.last_step} epoch {self._epoch} {text}")

    def _show_evaluation(self, crops: int, result: dict[str, Any]) -> None:
        """An evaluation in the log and on the console."""
        assert self.logger
        self.logger.log({"kind": "eval", "step": self.step, "epoch": self._epoch, "crops": crops, **result})
        self.progress.say(
            f"step {self.step}/{self.last_step} epoch {self._epoch} val{' of ten crops' * (crops > 1)}: "
            f"{metrics.error_text(result)} of {counted(result['samples'], 'image')}"
        )

    def _check_finite(self, wait: bool = False) -> None:
        """Raises InputError, with the images and the checkpoint to return to, when the loss of a step is NaN or
        infinite. Args: wait: for the device to finish all steps, instead of looking at those that it has finished."""
        if (found := self.losses.first_bad(wait)) is None:
            return
        step, value = found
        keys = self.loader.keys(*divmod(step - 1, self.steps_per_epoch))
        named = ", ".join(keys[:NAMED])
        if len(keys) > NAMED:
            path = self.config.out / f"not-finite-{step:08d}.txt"
            named += f" and {len(keys) - NAMED} more"
            with contextlib.suppress(OSError):  # of a full disk; the message has the first
                path.write_text("".join(f"{key}\n" for key in keys))
                named += f", see {path}"
        remedy = (
            f"lower --lr (now {self.optimizer.param_groups[0]['lr']:g}); {checkpoint.last_good_hint(self.config.out)}"
        )
        raise InputError(f"the loss is {value} at step {step}, on the images {named}: {remedy}")
