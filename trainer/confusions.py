"""What an evaluation took for what: each class's error, the hardest classes, and the commonest mistakes, by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

LISTED = 10  # classes, and confusions, of the table for people


class Confusions:
    """Args: counts: classes x classes, how many images of each class (a row) were taken for each (a column); classes:
    their names; words: what some of them are in English."""

    def __init__(self, counts: torch.Tensor, classes: Sequence[str], words: Mapping[str, str]):
        self.counts = counts.cpu()
        self.names = [f"{name} ({words[name]})" if name in words else name for name in classes]
        self.classes = classes

    def errors(self) -> list[tuple[int, int, float]]:
        """(class number, images, top-1 error) of each class that has images, the hardest first."""
        totals, right = self.counts.sum(dim=1).tolist(), self.counts.diagonal().tolist()
        present = [(number, total, 1 - right[number] / total) for number, total in enumerate(totals) if total]
        return sorted(present, key=lambda one: (-one[2], one[0]))

    def mistakes(self) -> list[tuple[int, int, int]]:
        """(class number, the number of the class that it was taken for, how often), the commonest first."""
        wrong = self.counts.clone().fill_diagonal_(0)
        pairs = [(*pair, int(wrong[tuple(pair)])) for pair in wrong.nonzero().tolist()]
        return sorted(pairs, key=lambda one: (-one[2], one[0], one[1]))

    def described(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "classes": [
                {"name": self.classes[number], "samples": images, "top1_error": error}
                for number, images, error in self.errors()
            ],
            "confusions": [
                {"name": self.classes[number], "taken_for": self.classes[other], "samples": times}
                for number, other, times in self.mistakes()
            ],
        }

    def table(self) -> str:
        """For people."""
        hardest = [f"  {error:6.1%} of {images:,}  {self.names[number]}" for number, images, error in self.errors()]
        names = self.names
        mistakes = [f"  {times:,} x  {names[one]} taken for {names[other]}" for one, other, times in self.mistakes()]
        heads = "The hardest classes, top-1 error:", "The commonest confusions:"
        return "\n".join([heads[0], *hardest[:LISTED], heads[1], *mistakes[:LISTED]])
