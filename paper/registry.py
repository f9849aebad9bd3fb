"""The studies by name: what each asks, and what it takes. Known without torch, for --help."""

from typing import NamedTuple


class About(NamedTuple):
    """question: with the paper's section; module: that answers it; size: of the default form, and its time on two
    cores; images: which set it is meant for, empty where it needs none."""

    question: str
    module: str
    size: str
    images: str


PARTS = "three seeds of each net, an eighth of the kernels, three epochs"
STUDIES = {
    "relu-vs-tanh": About(
        "Why ReLU (3.1, figure 1)?", "paper.relu_vs_tanh", "2,000 images, three seeds: about 15 minutes", "CIFAR-10"
    ),
    "towers": About(
        "Do two towers change the result, and do they specialize (3.2, figure 3)?",
        "paper.towers",
        f"{PARTS}: 20 minutes",
        "Tiny ImageNet",
    ),
    "lrn": About("What does LRN do, what does it buy (3.3)?", "paper.lrn", f"{PARTS}: 13 minutes", "Tiny ImageNet"),
    "pooling": About(
        "What does overlap in pooling buy (3.4)?", "paper.pooling", f"{PARTS}: 13 minutes", "Tiny ImageNet"
    ),
    "lighting": About(
        "What does the augmentation of colors buy (4.1)?", "paper.lighting", f"{PARTS}: 13 minutes", "Tiny ImageNet"
    ),
    "dropout": About(
        "Why times 0.5 at test (4.2)?", "paper.dropout", "2,000 images, three seeds: about 10 minutes", "CIFAR-10"
    ),
    "communication": About(
        "Why two GPUs (3.2)?", "paper.communication", "a batch of 32, the complete net: 5 minutes", ""
    ),
}
SEEDS = 3


def table() -> str:
    """A line for each study, for --help."""
    return "\n".join(f"{name}: {about.question} {about.size}." for name, about in STUDIES.items())
