"""The net against the paper's figure 2."""

import pytest
import torch

from shards.errors import InputError
from trainer.alexnet import POSITIVE_BIASES, VARIANTS, AlexNet, Variant
from trainer.loop import optimiser_of
from trainer.lrn import local_response_norm
from trainer.towers import Layout, Replicas, Towers

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


def first_layer(variant, picture):
    """conv1's output, and what reaches conv2."""
    net, seen = AlexNet(10, 0.1, 0.0, variant=variant).double().eval(), {}
    net.initialise(seed=2)
    net.conv1.register_forward_hook(lambda _, __, output: seen.update(out=output))
    net.conv2.register_forward_hook(lambda _, inputs, __: seen.update(next=inputs[0]))
    net(picture)
    return seen["out"].detach(), seen["next"].detach()


def test_each_variant_and_switch_does_what_its_row_says():
    picture = 100 * torch.randn(2, 3, 224, 224, dtype=torch.float64)
    functional, norm = torch.nn.functional, local_response_norm

    def pooled(x, wide=3):
        return functional.max_pool2d(x, wide, 2)

    expected = {
        VARIANTS["paper"]: lambda x: pooled(norm(x.relu(), 2)),
        VARIANTS["release-2012"]: lambda x: pooled(norm(x, 2, alpha=2e-5)).relu(),
        VARIANTS["one-tower"]: lambda x: pooled(norm(x.relu(), 1)),
        Variant(activation="tanh"): lambda x: pooled(norm(x.tanh(), 2)),
        Variant(norm=False): lambda x: pooled(x.relu()),
        Variant(pool="2/2"): lambda x: pooled(norm(x.relu(), 2), wide=2),
    }
    for variant, formula in expected.items():
        out, following = first_layer(variant, picture)
        torch.testing.assert_close(following, formula(out), rtol=1e-12, atol=1e-12)
    reached = [first_layer(variant, picture)[1] for variant in expected if variant.towers == 2]
    assert all(not torch.equal(a, b) for number, a in enumerate(reached) for b in reached[:number])


def test_one_tower_has_half_the_kernels_but_the_last_convolutions():
    with torch.device("meta"):
        net = AlexNet(variant=VARIANTS["one-tower"])
    kernels = {name: layer.weight.shape[0] for name, layer in net.named_children()}
    assert kernels == dict(zip(PARAMETERS, (48, 128, 192, 192, 256, 4096, 4096, 1000), strict=True))
    assert net.conv2.weight.shape[1] == 48 and net.conv4.weight.shape[1] == 192 and net.conv2.groups == 1
    towers = Towers()
    towers.size = 2
    with pytest.raises(InputError, match="a net of one tower cannot be laid out as two"):
        AlexNet(variant=VARIANTS["one-tower"], layout=Layout(towers, towers, Replicas()))


def test_the_release_trains_biases_at_twice_the_rate_and_without_decay():
    net = AlexNet(20, variant=VARIANTS["release-2012"])
    net.initialise(seed=0)
    for name, layer in net.named_children():
        spread = 0.03 if name in ("conv3", "conv4", "conv5") else 0.01
        assert layer.weight.std().item() == pytest.approx(spread, rel=0.03), name
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser = optimiser_of("paper", net, lr=0.1)
    for group in optimiser.param_groups:
        group["lr"] = 0.1 * group["times"]
    optimiser.step()
    for name, parameter in net.named_parameters():
        step = -0.2 if name.endswith("bias") else -0.1 - 0.0005 * 0.1 * before[name]
        torch.testing.assert_close(parameter - before[name], torch.zeros_like(parameter) + step, rtol=1e-3, atol=1e-6)
