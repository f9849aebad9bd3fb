"""What a run's folder says of it, without asking its model: options, logged lines, data set, bad samples."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import InputError, reason
from trainer import metrics
from trainer.config import TrainConfig
from trainer.run_folder import CONFIG, bad_samples, check_is_run


@dataclass(frozen=True)
class Run:
    """record: its `config.json`; trained, evaluated: its lines of `metrics.jsonl`, see `trainer.metrics`; bad: why
    images were skipped in training, by name."""

    folder: Path
    record: dict[str, Any]
    config: TrainConfig
    trained: list[dict[str, Any]]
    evaluated: list[dict[str, Any]]
    bad: dict[str, str]

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """Raises InputError for a folder that is not a run's, or of a run that has logged no step yet."""
        check_is_run(folder)
        try:
            record = json.loads((folder / CONFIG).read_text())
            config = TrainConfig.from_recorded(record, folder)
            if missing := {"dataset", "classes"} - record.keys():
                raise KeyError(min(missing))
            trained, evaluated = metrics.read(folder, "train"), metrics.read(folder, "eval")
            bad = bad_samples(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder} is not a run that can be read ({reason(error)}): give another") from None
        if not trained:
            raise InputError(f"{folder} has no logged step yet: ask again when its training has begun")
        return cls(folder, record, config, trained, evaluated, bad)

    @property
    def name(self) -> str:
        return str(self.folder)

    @property
    def last(self) -> dict[str, Any] | None:
        """The newest evaluation by the center crop."""
        return next((line for line in reversed(self.evaluated) if line["crops"] == 1), None)
