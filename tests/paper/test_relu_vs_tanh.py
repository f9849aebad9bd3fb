"""The study of figure 1: its arithmetic on made curves, and its whole way at a size of seconds."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from paper import relu_vs_tanh as study
from paper.ablation import Images
from paper.images import ImageSet
from paper.job import Job
from paper.small_net import Prepare, Shape, SmallNet, orders, subset, wrong_share


def made_images(count, classes=2):
    """Classes that differ in brightness."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    noise = torch.randint(0, 100, (count, 3, 32, 32), generator=rng)
    return Images((noise + 60 * labels[:, None, None, None]).to(torch.uint8), labels)


class MadeJob(Job):
    def images(self, side):
        return ImageSet("made", "made", ("a", "b"), made_images(64), made_images(16))

    digest = "made"


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(study, "SMALL", study.Size(64, (4, 4, 4), 8, 3, 2))


def test_the_whole_way(tmp_path, tiny):
    found = study.trials(MadeJob(None, tmp_path, 2, torch.device("cpu"), False))
    for start, about in study.answer(found)["starts"].items():
        for activation in study.ACTIVATIONS:
            rates = [one["lr"] for one in about["search"][activation]]
            best = about["lr"][activation]
            assert best / 2 in rates and best * 2 in rates and len(about["epochs"][activation]) == 2
        root = ElementTree.fromstring(study.pictures(found)[f"relu-vs-tanh-{start}"])
        assert len([one for one in root.iter() if one.tag.endswith("polyline")]) == 5  # two nets of each, and 25 %
    again = study.trials(MadeJob(None, tmp_path, 2, torch.device("cpu"), False))
    assert again == found
    anew = study.trials(MadeJob(None, tmp_path / "anew", 2, torch.device("cpu"), False))
    assert anew == found


def test_the_target_is_found_between_two_windows():
    assert study.crossing([(0.5, 0.45), (1.5, 0.05)]) == pytest.approx(1.0)
    assert study.crossing([(0.5, 0.45), (1.5, 0.26)]) is None


def test_the_search_ends_between_two_slower_learning_rates():
    epochs, tried = {0.01: 9.0, 0.02: 5.0, 0.04: 4.0, 0.08: None}, {}
    lr = 0.01
    while lr is not None:
        tried[lr] = {"epochs": epochs[lr], "curve": [(1.0, 0.3)]}
        lr = study.next_lr(tried)
    assert list(tried) == [0.01, 0.02, 0.04, 0.08]
    assert min(tried, key=lambda rate: study.speed(tried[rate])) == 0.04


def made_trials(**epochs):
    """A search and a seed of each activation, in either start: when it arrived, in a training of 10 epochs."""
    return [
        {"start": start, "activation": name, "lr": 0.1, "seed": seed, "curve": [(10.0, 0.9)], "epochs": epochs[name]}
        for start in study.FIRST_LR
        for name in study.ACTIVATIONS
        for seed in (0, study.SEARCH_SEED)
    ]


@pytest.mark.parametrize(
    ("relu", "tanh", "said"),
    [
        (2.0, 8.0, "ReLU is 4.0 (4.0 to 4.0) times as fast; paper: 6 times"),
        (2.0, None, "ReLU is more than 5.0 (5.0 to 5.0) times as fast"),
        (None, 8.0, "ReLU did not reach the target, so there is no ratio"),
    ],
)
def test_a_net_that_does_not_arrive_is_reported(relu, tanh, said):
    about = study.answer(made_trials(relu=relu, tanh=tanh))
    assert said in study.text(about)[0]


def test_the_start_of_the_release_is_that_of_its_layer_file():
    images = made_images(64).images
    net = SmallNet(Shape((16, 16, 32), start="release"), 2, 0)
    spreads = [layer.weight.std().item() for layer in (*net.convolutions, *net.dense)]
    assert spreads == pytest.approx([1e-4, 0.01, 0.01, 0.01], rel=0.1)
    prepared = Prepare(images, "release")(images)
    torch.testing.assert_close(prepared, images - images.float().mean(dim=0))
    assert Prepare(images)(images).std().item() == pytest.approx(prepared.std().item() / images.float().std().item())


def test_a_net_is_of_its_seed_and_its_signal_keeps_its_size():
    images = made_images(64).images.float().sub(100).div(40)
    for activation in study.ACTIVATIONS:
        shape = Shape((16, 16, 32), activation=activation)
        net, same, other = (SmallNet(shape, 2, seed) for seed in (0, 0, 1))
        assert torch.equal(net(images), same(images)) and not torch.equal(net(images), other(images))
        assert 0.05 < net.features(images).std().item() < 5


def test_an_order_has_every_image_once():
    order = orders(10, 5, 0)
    first, second = next(order), next(order)
    assert sorted(first.flatten().tolist()) == list(range(10)) and not torch.equal(first, second)


def test_a_subset_has_as_many_of_each_class():
    some = subset(made_images(64), 10)
    assert some.labels.tolist() == 5 * [0] + 5 * [1]
    assert wrong_share(lambda images: torch.eye(2)[images.new_zeros(len(images)).long()], some) == 0.5
