"""A step that is repeated on one batch measures the same arithmetic each time: it does not learn the batch."""

import torch

from bench.harness.machine import cpu_context
from bench.harness.model_step import ModelOptions, ModelStep


def test_a_batch_that_is_repeated_is_not_learned():
    resident = ModelStep(cpu_context(), 4, ModelOptions(width=0.05))
    before = [parameter.detach().clone() for parameter in resident.model.parameters()]
    images, labels = torch.randn(8, 3, 224, 224) * 50, torch.randint(4, (8,))
    for _ in range(20):
        resident.update(images, labels)
    for one, other in zip(before, resident.model.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-4, atol=1e-6)
