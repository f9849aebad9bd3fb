"""The net against the paper's figure 2, and two processes against one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from trainer.alexnet import POSITIVE_BIASES, AlexNet
from trainer.launch import leave_group
from trainer.recipe import PaperSGD
from trainer.towers import Towers

# weights per kernel x kernels + biases; grouped layers read one tower's half
PARAMETERS = {
    "conv1": 11 * 11 * 3 * 96 + 96,  #            34,944
    "conv2": 5 * 5 * 48 * 256 + 256,  #          307,456
    "conv3": 3 * 3 * 256 * 384 + 384,  #         885,120
    "conv4": 3 * 3 * 192 * 384 + 384,  #         663,936
    "conv5": 3 * 3 * 192 * 256 + 256,  #         442,624
    "fc6": 6 * 6 * 256 * 4096 + 4096,  #      37,752,832
    "fc7": 4096 * 4096 + 4096,  #             16,781,312
    "fc8": 4096 * 1000 + 1000,  #              4,097,000
}


def test_parameter_count():
    with torch.device("meta"):
        net = AlexNet()
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in net.named_children()}
    assert counts == PARAMETERS
    assert sum(counts.values()) == 60_965_224


def test_sizes_are_figure_2s():
    net, sizes = AlexNet().eval(), {}
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda _, __, output, name=name: sizes.update({name: tuple(output.shape[1:])}))
    net(torch.zeros(1, 3, 224, 224))
    assert sizes == {
        "conv1": (96, 55, 55),
        "conv2": (256, 27, 27),
        "conv3": (384, 13, 13),
        "conv4": (384, 13, 13),
        "conv5": (256, 13, 13),
        "fc6": (4096,),
        "fc7": (4096,),
        "fc8": (1000,),
    }


def test_224_is_padded_right_and_bottom_as_in_2012():
    net, seen = AlexNet(width=0.1).eval(), []
    net.initialise(seed=0)
    net.conv1.register_forward_hook(lambda _, __, output: seen.append(output))
    picture = torch.randn(1, 3, 224, 224)
    net(picture)
    # The first window begins at the picture's own corner, the last one hangs over by 3 pixels
    corner = (picture[0, :, :11, :11] * net.conv1.weight[0]).sum() + net.conv1.bias[0]
    last = (picture[0, :, 216:, 216:] * net.conv1.weight[0, :, :8, :8]).sum() + net.conv1.bias[0]
    torch.testing.assert_close(seen[0][0, 0, 0, 0], corner, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0][0, 0, 54, 54], last, rtol=1e-4, atol=1e-5)


def test_initial_weights_are_section_5s():
    net = AlexNet(20)
    net.initialise(seed=0)
    for name, layer in net.named_children():
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02), name
        assert layer.weight.mean().abs() < 2e-4
        assert (layer.bias == (1 if name in POSITIVE_BIASES else 0)).all()
    narrow = AlexNet(20, width=0.25)
    narrow.initialise(seed=0)
    assert narrow.conv1.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert narrow.fc6.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_dropout_masks_in_training_and_scales_in_testing():
    net, ones = AlexNet(width=0.1, dropout=0.25), torch.ones(2000, 40)
    dropped = net.drop(ones, torch.Generator().manual_seed(0))
    assert set(dropped.unique().tolist()) == {0, 1}
    assert dropped.mean().item() == pytest.approx(0.75, abs=0.01)
    assert torch.equal(net.eval().drop(ones, None), ones * 0.75)
    with pytest.raises(ValueError, match="rng"):
        net.train()(torch.zeros(1, 3, 224, 224))


def test_canonical_state_of_another_net_is_refused():
    small, wide = AlexNet(10, width=0.1), AlexNet(10, width=0.2)
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        small.load_canonical(wide.canonical_state())
    with pytest.raises(ValueError, match=r"fc8\.bias"):
        small.load_canonical({k: v for k, v in small.canonical_state().items() if k != "fc8.bias"})


def one_step(towers, dtype, dropout, classes, state=None):
    """Loss, logits, canonical gradients and canonical weights after one update of a narrow net."""
    net = AlexNet(classes, width=0.125, dropout=dropout, towers=towers).to(dtype)
    if state is None:
        net.initialise(seed=7)
    else:
        net.load_canonical(state)
    data = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 224, 224, generator=data, dtype=dtype)
    labels = torch.randint(classes, (4,), generator=data)
    logits = net(images, torch.Generator().manual_seed(3))
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    gradients = {name: towers.gather(parameter.grad).clone() for name, parameter in net.named_parameters()}
    PaperSGD(net.parameters(), lr=0.01).step()
    return {"loss": loss.detach(), "logits": logits.detach(), **gradients}, net.canonical_state()


CASES = [(torch.float64, 1e-9, 0.0, 10), (torch.float64, 1e-9, 0.5, 7), (torch.float32, 1e-4, 0.5, 10)]


def tower_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        compare_as_tower(Towers(dist.group.WORLD), rank, folder)
    finally:
        leave_group()


def compare_as_tower(towers, rank, folder):
    for number, (dtype, _, dropout, classes) in enumerate(CASES):
        # Weights come from the one-process net's file, and again from the seed
        before = torch.load(f"{folder}/before-{number}.pt")
        torch.save(one_step(towers, dtype, dropout, classes, before), f"{folder}/loaded-{number}-{rank}.pt")
        torch.save(one_step(towers, dtype, dropout, classes), f"{folder}/seeded-{number}-{rank}.pt")
    x = torch.arange(4).reshape(2, 2) + 10 * rank
    assert towers.gather_batch(x).tolist() == [[0, 1], [2, 3], [10, 11], [12, 13]]
    assert towers.join(x.float()).tolist() == [[0, 1, 10, 11], [2, 3, 12, 13]]
    assert torch.equal(towers.slice(towers.gather(x)), x)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    for number, (dtype, _, _, classes) in enumerate(CASES):
        net = AlexNet(classes, width=0.125).to(dtype)
        net.initialise(seed=7)
        torch.save(net.canonical_state(), folder / f"before-{number}.pt")
    mp.start_processes(tower_process, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("weights", ["loaded", "seeded"])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_processes_are_one(two_processes, number, weights):
    dtype, tolerance, dropout, classes = CASES[number]
    step, after = one_step(Towers(), dtype, dropout, classes)
    assert step["logits"].shape == (4, classes)
    for rank in (0, 1):
        tower_step, tower_after = torch.load(two_processes / f"{weights}-{number}-{rank}.pt")
        for mine, theirs in ((step, tower_step), (after, tower_after)):
            assert mine.keys() == theirs.keys()
            for name, value in mine.items():
                scale = value.abs().max()
                assert scale > 0, name
                assert (value - theirs[name]).abs().max() <= tolerance * scale, name
