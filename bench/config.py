"""What `throughput-bench` measures, and how: its options, as one thing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.harness.model_step import ModelOptions
from shards.remote import Remote


@dataclass(frozen=True)
class BenchConfig:
    """The options of `throughput-bench`, with the command's defaults."""

    data: Path | Remote | None = None
    """A data set's folder or URL; None renders a set of 512 images."""
    batch_size: int = 128
    """Images of the global batch."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """The model whose steps are measured."""
    gpus: int | None = None
    """How many devices; None: torchrun's number, otherwise 1."""
    parallel: str = "towers"
    """How devices share the model: towers, data or hybrid."""
    device: str = "auto"
    """auto, cuda or cpu."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """The fields of `pipeline.settings.Settings` that are chosen, by name; None: not chosen."""
    seconds: float = 3.0
    """How long each stage is measured; each limit takes half of it."""
    cold: bool = False
    """Drop the shards from the page cache before each reading."""
    with_peers: bool = False
    """Measure other loaders on the same images, too."""
    with_scaling: bool = False
    """Measure other numbers of threads and ranks, batches and image sizes, too."""
    tune: bool = False
    """Find DALI's fastest settings, and measure nothing else."""
    json_path: Path | None = None
    """Where the report is written as JSON."""
    report_path: Path | None = None
    """Where the report is written as a page of HTML."""
