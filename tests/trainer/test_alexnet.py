"""The model has the layers, sizes and initial weights of the paper, and its variants those of theirs."""

import pytest
import torch

from shards.errors import InputError
from trainer.alexnet import POSITIVE_BIASES, VARIANTS, AlexNet, Variant
from trainer.lrn import local_response_norm
from trainer.model_parallel import Layout, Replicas, ShardGroup
from trainer.optimizer import build_optimizer
from trainer.precision import Precision

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
        model = AlexNet()
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in model.named_children()}
    assert counts == PARAMETERS
    assert sum(counts.values()) == 60_965_224


def test_sizes_are_figure_2s():
    model, sizes = AlexNet().eval(), {}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _, __, output, name=name: sizes.update({name: tuple(output.shape[1:])}))
    model(torch.zeros(1, 3, 224, 224))
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


class SideBySide(AlexNet):
    """As on a GPU: each tower in a tensor of its own."""

    def _parts(self, images):
        return self.local_towers


@pytest.mark.parametrize("variant", VARIANTS)
def test_towers_side_by_side_are_towers_in_one_tensor(variant):
    results = []
    images = 50 * torch.randn(3, 224, 224, 3, dtype=torch.float64).movedim(-1, 1)
    for build in (AlexNet, SideBySide):
        model = build(10, width=0.1, dropout=0, variant=VARIANTS[variant]).double()
        model.init_weights(seed=0)
        loss = torch.nn.functional.cross_entropy(model(images), torch.arange(3))
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    for together, side_by_side in zip(*results, strict=True):
        torch.testing.assert_close(side_by_side, together, rtol=1e-9, atol=1e-15)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 0.01)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_gpu_the_towers_side_by_side_are_the_cpus_model(variant, dtype, tolerance):
    results, images = [], 50 * torch.randn(8, 224, 224, 3, dtype=dtype).movedim(-1, 1)
    for device in ("cpu", "cuda"):
        Precision("fp32", torch.device(device))  # no tf32 in convolutions
        model = AlexNet(10, width=0.1, dropout=0, variant=VARIANTS[variant]).to(dtype)
        model.init_weights(seed=0)
        loss = torch.nn.functional.cross_entropy(model.to(device)(images.to(device)), torch.arange(8, device=device))
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for cpus, gpus in zip(*results, strict=True):
        assert (gpus.cpu() - cpus).norm() <= tolerance * cpus.norm()


def test_224_is_padded_right_and_bottom_as_in_2012():
    model, seen = AlexNet(width=0.1).eval(), []
    model.init_weights(seed=0)
    model.conv1.register_forward_hook(lambda _, __, output: seen.append(output))
    image = torch.randn(1, 3, 224, 224)
    model(image)
    # The first window begins at the image's own corner, the last one hangs over by 3 pixels
    corner = (image[0, :, :11, :11] * model.conv1.weight[0]).sum() + model.conv1.bias[0]
    last = (image[0, :, 216:, 216:] * model.conv1.weight[0, :, :8, :8]).sum() + model.conv1.bias[0]
    torch.testing.assert_close(seen[0][0, 0, 0, 0], corner, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0][0, 0, 54, 54], last, rtol=1e-4, atol=1e-5)


def test_initial_weights_are_section_5s():
    model = AlexNet(20)
    model.init_weights(seed=0)
    for name, layer in model.named_children():
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02), name
        assert layer.weight.mean().abs() < 2e-4
        assert (layer.bias == (1 if name in POSITIVE_BIASES else 0)).all()
    narrow = AlexNet(20, width=0.25)
    narrow.init_weights(seed=0)
    assert narrow.conv1.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert narrow.fc6.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_dropout_masks_in_training_and_scales_in_testing():
    model, ones = AlexNet(width=0.1, dropout=0.25), torch.ones(2000, 40)
    dropped = model.apply_dropout(ones, torch.Generator().manual_seed(0))
    assert set(dropped.unique().tolist()) == {0, 1}
    assert dropped.mean().item() == pytest.approx(0.75, abs=0.01)
    assert torch.equal(model.eval().apply_dropout(ones, None), ones * 0.75)
    with pytest.raises(ValueError, match="rng"):
        model.train()(torch.zeros(1, 3, 224, 224))


def test_unsharded_state_of_another_model_is_refused():
    small, wide = AlexNet(10, width=0.1), AlexNet(10, width=0.2)
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        small.load_unsharded(wide.unsharded_state_dict())
    with pytest.raises(ValueError, match=r"fc8\.bias"):
        small.load_unsharded({k: v for k, v in small.unsharded_state_dict().items() if k != "fc8.bias"})


def first_layer(variant, image):
    """conv1's output, and what reaches conv2."""
    model, seen = AlexNet(10, 0.1, 0.0, variant=variant).double().eval(), {}
    model.init_weights(seed=2)
    model.conv1.register_forward_hook(lambda _, __, output: seen.update(out=output))
    model.conv2.register_forward_hook(lambda _, inputs, __: seen.update(next=inputs[0]))
    model(image)
    return seen["out"].detach(), seen["next"].detach()


def test_each_variant_and_switch_does_what_its_row_says():
    image = 100 * torch.randn(2, 3, 224, 224, dtype=torch.float64)
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
        out, following = first_layer(variant, image)
        torch.testing.assert_close(following, formula(out), rtol=1e-12, atol=1e-12)
    reached = [first_layer(variant, image)[1] for variant in expected if variant.towers == 2]
    assert all(not torch.equal(a, b) for number, a in enumerate(reached) for b in reached[:number])


def test_one_tower_has_half_the_kernels_but_the_last_convolutions():
    with torch.device("meta"):
        model = AlexNet(variant=VARIANTS["one-tower"])
    kernels = {name: layer.weight.shape[0] for name, layer in model.named_children()}
    assert kernels == dict(zip(PARAMETERS, (48, 128, 192, 192, 256, 4096, 4096, 1000), strict=True))
    assert model.conv2.weight.shape[1] == 48 and model.conv4.weight.shape[1] == 192 and model.conv2.groups == 1
    towers = ShardGroup()
    towers.size = 2
    with pytest.raises(InputError, match="a model of one tower cannot be split into two"):
        AlexNet(variant=VARIANTS["one-tower"], layout=Layout(towers, towers, Replicas()))


def test_the_release_trains_biases_at_twice_the_lr_and_without_decay():
    model = AlexNet(20, variant=VARIANTS["release-2012"])
    model.init_weights(seed=0)
    for name, layer in model.named_children():
        spread = 0.03 if name in ("conv3", "conv4", "conv5") else 0.01
        assert layer.weight.std().item() == pytest.approx(spread, rel=0.03), name
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = build_optimizer("paper", model, lr=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group["lr_scale"]
    optimizer.step()
    for name, parameter in model.named_parameters():
        step = -0.2 if name.endswith("bias") else -0.1 - 0.0005 * 0.1 * before[name]
        torch.testing.assert_close(parameter - before[name], torch.zeros_like(parameter) + step, rtol=1e-3, atol=1e-6)
