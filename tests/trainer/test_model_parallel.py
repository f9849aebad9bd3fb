"""Every mesh of processes against one process: the same loss, gradients and weights; and the bytes they exchange."""

import json

import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from pipeline.loader import BAD_LABEL
from tests.support.training_runs import trained_by_command
from trainer.alexnet import AlexNet
from trainer.launch import launch
from trainer.model_parallel import replicate, unsharded_layout
from trainer.optimizer import PaperSGD
from trainer.precision import Precision, compile_model
from trainer.train_step import TrainStep

CPU = torch.device("cpu")
BATCH, WIDTH, FULL = 12, 0.125, Precision("fp32", CPU)
# --parallel and --gpus
MESHES = {"1 x 2": ("towers", 2), "2 x 2": ("towers", 4), "4 x 1": ("data", 4), "3 x 1": ("data", 3)}
MESHES |= {"hybrid 2": ("hybrid", 2), "hybrid 4": ("hybrid", 4)}
# dtype, tolerance of the largest value, dropout, classes. In float32 a ReLU near zero may tip before the second step
CASES = {
    "plain": (torch.float64, 1e-9, 0.0, 12),
    "dropout": (torch.float64, 1e-9, 0.5, 12),
    "float32": (torch.float32, 0.05, 0.5, 12),
}
ODD_CLASSES = {"odd classes": (torch.float64, 1e-9, 0.5, 7)}


def share(layout, rank, world_size):
    """The images of the global batch that the convolutions here read."""
    part, of = (rank, world_size) if layout.is_hybrid else (layout.replicas.rank, layout.replicas.size)
    return slice(part * BATCH // of, (part + 1) * BATCH // of)


def two_steps(layout, dtype, dropout, classes, rank=0, world_size=1, compile=False):
    """Losses, unsharded gradients, unsharded weights and probabilities after two updates of a narrow model."""
    model = AlexNet(classes, WIDTH, dropout, layout).to(dtype)
    model.init_weights(seed=7)
    data = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, 224, 224, generator=data, dtype=dtype)
    labels = torch.randint(classes, (BATCH,), generator=data)
    labels[1] = BAD_LABEL  # so that the replicas do not count alike
    own = share(layout, rank, world_size)
    labels = labels if layout.is_hybrid else labels[own]
    trained = replicate(model, layout)
    trained = compile_model(trained, CPU) if compile else trained
    update = TrainStep(trained, layout, PaperSGD(model.parameters(), lr=0.01), FULL, CPU, seed=3)
    results = {}
    for step in range(2):
        loss = update(images[own], labels, step)
        results[f"loss {step}"] = layout.replicas.all_reduce(loss.clone())
    results |= {
        f"gradient of {name}": model.shard_group(name).unshard(p.grad).clone() for name, p in model.named_parameters()
    }
    results |= {name: value.clone() for name, value in model.unsharded_state_dict().items()}
    return results, model.eval().probabilities(images[own]).detach()


def step_as_rank(context, folder, cases, compile=False):
    for name, (dtype, _, dropout, classes) in cases.items():
        result = two_steps(context.layout, dtype, dropout, classes, context.rank, context.world_size, compile)
        own = slice(0, BATCH) if context.layout.is_hybrid else share(context.layout, context.rank, context.world_size)
        torch.save((*result, [own.start, own.stop]), folder / f"{name}-{context.rank}")


@pytest.fixture(scope="module")
def alone():
    return {
        name: two_steps(unsharded_layout(), dtype, *rest) for name, (dtype, _, *rest) in (CASES | ODD_CLASSES).items()
    }


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_is_one_process(mesh, alone, tmp_path, quick_ranks):
    # Seven classes and the unused one cannot be split over other numbers than two and four
    assert_one_process(mesh, CASES if mesh == "3 x 1" else CASES | ODD_CLASSES, alone, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("mesh", ["1 x 2", "hybrid 2"])
def test_compiled_layers_that_are_sharded_are_the_plain_ones(mesh, alone, tmp_path, quick_ranks):
    assert_one_process(mesh, {"dropout": CASES["dropout"]}, alone, tmp_path, compile=True)


def assert_one_process(mesh, cases, alone, tmp_path, compile=False):
    parallel, world_size = MESHES[mesh]
    launch(step_as_rank, world_size, "cpu", tmp_path, cases, compile, parallel=parallel)
    for name, (_, tolerance, *_) in cases.items():
        expected, probabilities = alone[name]
        for rank in range(world_size):
            results, seen, (start, stop) = torch.load(tmp_path / f"{name}-{rank}")
            assert results.keys() == expected.keys()
            torch.testing.assert_close(seen, probabilities[start:stop], rtol=0, atol=tolerance)
            for key, value in expected.items():
                scale = value.abs().max()
                assert scale > 0, key
                assert (value - results[key]).abs().max() <= tolerance * scale, (name, rank, key)


def count_as_rank(context, folder, width):
    """One step's bytes: what the layers sent, and what DistributedDataParallel summed."""
    layout = context.layout
    model = AlexNet(12, width, 0.5, layout)
    model.init_weights(seed=0)
    trained, summed = replicate(model, layout), []

    def hook(group, bucket):
        summed.append(bucket.buffer().nbytes)
        return allreduce_hook(group, bucket)

    if trained is not model:
        trained.register_comm_hook(layout.gradient_group, hook)
    own = share(layout, context.rank, context.world_size)
    images, labels = torch.randn(BATCH, 3, 224, 224)[own], torch.arange(BATCH)
    labels = labels if layout.is_hybrid else labels[own]
    update = TrainStep(trained, layout, PaperSGD(model.parameters(), lr=0.01), FULL, CPU, seed=0)
    update(images, labels, 0)
    sent = layout.dense.bytes_sent + (layout.towers.bytes_sent if layout.towers is not layout.dense else 0)
    counts = {"sent": sent, "summed": sum(summed), "parameters": sum(p.nbytes for p in model.parameters())}
    (folder / f"{context.rank}.json").write_text(json.dumps(counts))


@pytest.mark.parametrize("mesh", ["1 x 2", "2 x 2", "4 x 1", "hybrid 2"])
def test_bytes_sent_are_those_of_the_docs(mesh, tmp_path, quick_ranks):
    parallel, world_size = MESHES[mesh]
    launch(count_as_rank, world_size, "cpu", tmp_path, WIDTH, parallel=parallel)
    pool2, conv5, dense = 32 * 13 * 13, 32 * 6 * 6, 512  # numbers an image, of both towers, at this width
    convolutions = {name: p for name, p in AlexNet(12, WIDTH).named_parameters() if name.startswith("conv")}
    for rank in range(world_size):
        counts = json.loads((tmp_path / f"{rank}.json").read_text())
        if parallel == "towers":
            # A tower sends its half forward and the other's gradients backward, and of the softmax three numbers
            a_image = 2 * 4 * (pool2 + conv5 + 2 * dense) / 2 + 3 * 4
            assert counts["sent"] == a_image * BATCH * 2 / world_size
            assert counts["summed"] == (counts["parameters"] if world_size == 4 else 0)
        elif parallel == "data":
            assert counts["sent"] == 0 and counts["summed"] == counts["parameters"]
        else:
            # Its images' features to the other, its neurons' outputs of all images, and gradients of both
            rows, neurons = 2 * 4 * conv5 * BATCH / 2, 2 * 4 * 2 * dense / 2 * BATCH
            assert counts["sent"] == rows + neurons + 3 * 4 * BATCH
            assert counts["summed"] == sum(p.nbytes for p in convolutions.values())


def test_a_run_continues_in_another_layout(data, tmp_path, run_here):
    losses, weights = trained_by_command(run_here, data, tmp_path / "one")
    out = tmp_path / "many"
    for steps, mesh in ((1, ("data", 3)), (2, ("towers", 4)), (3, ("hybrid", 2)), (4, ("towers", 2))):
        layout = ("--parallel", mesh[0], "--gpus", mesh[1], "--resume", "auto")
        changed, changed_weights = trained_by_command(run_here, data, out, *layout, steps=steps)
    assert [line["loss"] for line in changed] == pytest.approx([line["loss"] for line in losses], rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(changed_weights[name], value, rtol=1e-3, atol=1e-5)
