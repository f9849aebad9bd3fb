"""A loss that is NaN or infinite is found, and no step waits for the one before."""

import time

import pytest
import torch

from trainer.loss_watch import LossWatch


def test_the_first_bad_loss_is_named_with_its_step():
    losses = LossWatch()
    for step, value in enumerate([1.0, 2.0, float("inf"), float("nan")], 7):
        losses.add(step, torch.tensor(value))
    assert losses.first_bad(wait=False) == (9, float("inf"))
    assert losses.first_bad(wait=False)[0] == 10
    assert losses.first_bad(wait=True) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_on_a_gpu_nothing_waits_until_it_is_asked_to():
    losses, loss = LossWatch(), torch.tensor(float("nan"), device="cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)  # half a second
    began = time.perf_counter()
    losses.add(1, loss)
    assert losses.first_bad(wait=False) is None and time.perf_counter() - began < 0.1
    assert losses.first_bad(wait=True)[0] == 1
