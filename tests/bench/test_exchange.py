"""The exchange that is repeated sends what a step sends, and leaves nothing behind that records it."""

import json

import pytest
import torch

from bench.exchange import record_exchange
from bench.harness.model_step import ModelOptions, ModelStep
from trainer.launch import launch


def count_bytes(context, path):
    """Writes the bytes that the first rank sends in a step, and in the exchange that is repeated without it."""
    group = context.layout.towers
    step = ModelStep(context, 4, ModelOptions(width=0.05))
    images, labels = torch.randn(4, 3, 224, 224), torch.randint(4, (4,))
    step.gradients(images, labels)
    in_step = group.bytes_sent
    repeat, recorded = record_exchange(lambda: step.gradients(images, labels), step.model, context)
    before = group.bytes_sent
    repeat()
    if context.rank == 0:
        path.write_text(json.dumps([in_step, recorded, group.bytes_sent - before, group.on_exchange is None]))


@pytest.mark.long
def test_the_repeated_exchange_sends_as_many_bytes_as_the_step(tmp_path, quick_ranks):
    launch(count_bytes, 2, "cpu", tmp_path / "sent.json")
    in_step, recorded, repeated, removed = json.loads((tmp_path / "sent.json").read_text())
    assert in_step == recorded == repeated > 0 and removed
