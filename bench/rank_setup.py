"""What every measurement on a rank works with: the rank, the options, the data set, and DALI's settings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.config import BenchConfig
from bench.harness.datasets import stream
from bench.harness.timing import Timed, timed
from pipeline.loader import Batch, Loader
from pipeline.order import Augmentation
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards.dataset import Dataset
from shards.remote import Remote
from trainer.cuda_graph import check_cuda_graphs, choose_compilation
from trainer.precision import check_compiler
from trainer.rank import RankContext


@dataclass(frozen=True)
class RankSetup:
    """settings: DALI's on this rank, as chosen, tuned or by default."""

    context: RankContext
    config: BenchConfig
    dataset: Dataset
    stats: Stats
    settings: Settings

    @classmethod
    def load(cls, context: RankContext, config: BenchConfig, data: Path | Remote) -> "RankSetup":
        """Raises InputError for a model that cannot run as it is asked to."""
        config = with_compilation(config, context)
        dataset = Dataset.load(data)
        settings = context.settings(dict(config.decoding), dataset.size)
        return cls(context, config, dataset, Stats.load(dataset.root), settings)

    @property
    def images(self) -> int:
        """Images that a step of this rank counts for: two towers both work on every image of the global batch."""
        return self.config.batch_size // self.context.world_size

    def loader_options(self, **changed: Any) -> dict[str, Any]:
        """The options of `pipeline.loader.Loader` that training would have here, some of them changed."""
        options = {"batch_size": self.config.batch_size, "settings": self.settings}
        options |= {"rank_slice": self.context.rank_slice, "augmentation": Augmentation(self.stats)}
        return {**options, **changed}

    def loader(self, view: str, split: str = "train") -> Loader:
        return Loader(self.dataset, split, view, **self.loader_options())

    def batches(self, dataset: Dataset | None = None, **changed: Any) -> Iterator[Batch]:
        """Training batches without end, some of the loader's options changed."""
        return stream(dataset or self.dataset, **self.loader_options(**changed))

    def time(self, step: Callable[[], object], images: int | None = None) -> Timed:
        """Times `step` for `config.seconds`; a call counts for `images`, by default this rank's share of a batch."""
        return timed(step, self.images if images is None else images, self.config.seconds, self.context)


def with_compilation(config: BenchConfig, context: RankContext) -> BenchConfig:
    """The same with the model compiled and recorded, or not, as training's default here is where the options leave it
    open. Raises InputError for a model that cannot run so."""
    model, kind = config.model, context.device.type
    compile, graphs = choose_compilation(model.compile, model.cuda_graphs, kind, context.world_size)
    if compile:
        check_compiler(context.device)
    if graphs:
        check_cuda_graphs(context.device, context.world_size)
    return replace(config, model=replace(model, compile=compile, cuda_graphs=graphs))
