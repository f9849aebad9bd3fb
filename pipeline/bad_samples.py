"""Samples that cannot be decoded: finding them after DALI failed, counting them, and what is read instead.

DALI does not say which image it failed over, so the images of its batch are decoded one by one. From then on a bad
sample's place in the order stays, another image is read there and its label says that it does not count: so ranks need
not agree on a new order, and every good sample still comes exactly once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import graph
from pipeline.samples import SampleId, Samples
from shards.console import notice
from shards.errors import InputError, Unreadable
from shards.images import check_image, read_header


class BadSamples:
    """The bad samples of a split known so far; `reasons` says why each is bad.

    Args: max_bad: the fraction of the split's samples that may be bad, one sample at least; probe: DALI's options of a
    pipeline that decodes one image as the loader does.
    """

    def __init__(self, samples: Samples, max_bad: float, probe: dict[str, Any]):
        self.samples, self.probe = samples, probe
        self.max_count = max(1, int(max_bad * len(samples)))
        self.reasons: dict[SampleId, str] = dict(samples.masked)

    def named(self) -> dict[str, str]:
        """Why each sample that was found here is bad, by its name."""
        found = {sample: reason for sample, reason in self.reasons.items() if sample not in self.samples.masked}
        return {self.samples.key(sample): reason for sample, reason in sorted(found.items())}

    def mask(self, rows: np.ndarray) -> np.ndarray:
        """Which of the samples (rows of (shard, number)) are bad, as booleans."""
        if not self.reasons:
            return np.zeros(len(rows), bool)
        return np.array([tuple(row) in self.reasons for row in rows.tolist()], dtype=bool)

    def replace(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A batch's rows, each bad one replaced by the nearest good one before it, or else after it, or else the first
        good one of the split; and which are replaced."""
        bad = self.mask(rows)
        if not bad.any():
            return rows, bad
        if bad.all():
            return np.tile(np.array(self._first_good(), rows.dtype), (len(rows), 1)), bad
        nearest = np.maximum.accumulate(np.where(bad, -1, np.arange(len(rows))))
        return rows[np.where(nearest < 0, bad.argmin(), nearest)], bad

    def _first_good(self) -> SampleId:
        for shard, size in enumerate(self.samples.shard_sizes):
            for number in range(size):
                if (shard, number) not in self.reasons:
                    return shard, number
        raise InputError(f"{self.samples.dataset.where}: no sample of the split can be decoded")

    def find(self, batches: Sequence[np.ndarray], error: RuntimeError) -> None:
        """Marks the samples that DALI failed over: those of the first of these batches that has any.

        Args: batches: what DALI was given. Where it was given a sample that is known to be bad by now, from another
        rank, nothing is to be found. Raises: InputError when there are none, or when too many samples are bad.
        """
        for rows in batches:
            if self.mask(rows).any():
                return
            samples = dict.fromkeys(map(tuple, rows.tolist()))
            bad = {row: reason for row in samples if (reason := decode_error(self.samples.jpeg(row), self.probe))}
            if bad:
                self.mark(bad)
                return
        tars = sorted({self.samples.shards[shard].name for shard in batches[0][:, 0]}) if batches else []
        raise InputError(
            f"DALI failed on a batch from {', '.join(tars)}, whose images can each be decoded: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error

    def mark(self, bad: Mapping[SampleId, str]) -> None:
        """Takes samples to be bad from now on, each for its reason. Raises InputError when there are too many."""
        for sample, reason in bad.items():
            if sample in self.reasons:
                continue
            self.reasons[sample] = reason
            message = f"{self.samples.tars[sample[0]]}: {self.samples.name(sample)} cannot be decoded ({reason})"
            count = len(self.reasons) - len(self.samples.masked)
            notice(f"{message}: skipped, {count} so far")
            if count > self.max_count:
                folder = "DIR" if self.samples.dataset.remote else self.samples.dataset.root
                remedy = f"`python cli.py verify {folder} --decode --quarantine` takes all such out of the data set"
                allowed = f"and max_bad (`train --max-bad`) allows {self.max_count} such"
                resumed = "what was begun can be resumed (`train --resume auto`)"
                raise InputError(f"{message}, {allowed}: {remedy}, and {resumed}; or allow more")


def decode_error(jpeg: bytes, probe: dict[str, Any]) -> str | None:
    """Why an image cannot be decoded, None when it can."""
    pipe: Any = graph.probe_graph(**probe)  # DALI's own class brings no types
    pipe.build()
    try:
        pipe.feed_input("encoded", [np.frombuffer(jpeg, np.uint8)])
        pipe.run()
    except RuntimeError as error:
        # DALI's own message speaks of its internals; ours says what the image is
        return check_image(jpeg)[0] or _dali_problem(jpeg) or "DALI: " + " ".join(str(error).split())[-120:]
    return None


def _dali_problem(jpeg: bytes) -> str | None:
    try:
        return read_header(jpeg).problem
    except Unreadable as unreadable:
        return str(unreadable)
