"""No step waits for the device: Python is ahead of it, so that it always has something to do."""

import pytest
import torch

from tests.support.dispatched import Dispatched
from trainer.alexnet import AlexNet
from trainer.config import TrainConfig
from trainer.model_parallel import unsharded_layout
from trainer.optimizer import build_optimizer
from trainer.precision import Precision
from trainer.train import Trainer, train
from trainer.train_step import TrainStep

CPU = torch.device("cpu")
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")
PRECISIONS, RECIPES = ("fp32", "bf16", "fp16"), ("paper", "large-batch")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_reads_no_value_from_the_device(precision, recipe):
    model = AlexNet(10, width=0.05)
    model.init_weights(seed=0)
    optimizer = build_optimizer(recipe, model, lr=0.01)
    update = TrainStep(model, unsharded_layout(), optimizer, Precision(precision, CPU), CPU, seed=0)
    images, labels = torch.randn(4, 3, 224, 224), torch.arange(4)
    update(images, labels, 0)
    with Dispatched() as under:
        update(images, labels, 1)
    assert under.names.count("aten::_fused_sgd_") == 2
    assert not [name for name in under.names if name in READS]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_on_a_gpu_a_step_from_data_to_loss_does_not_wait(data, tmp_path, monkeypatch, precision, recipe, cuda_graphs):
    step, watched = Trainer.train_one_step, []

    def without_waiting(trainer):
        if trainer.step >= 5:  # the first ones compile TorchScript, and record
            watched.append(trainer.step)
            torch.cuda.set_sync_debug_mode("error")
        try:
            step(trainer)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "train_one_step", without_waiting)
    how = {"precision": precision, "recipe": recipe, "compile": False, "cuda_graphs": cuda_graphs}
    train(TrainConfig(data, tmp_path / "run", gpus=1, device="cuda", width=0.1, batch_size=8, steps=10, **how))
    assert watched == [5, 6, 7, 8, 9]
