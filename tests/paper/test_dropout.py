"""Dropout's nets against their definition, and the study's whole way at a size of seconds."""

import itertools
import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from paper import dropout as study
from paper.sampled_nets import averages, dropping, inverted, one_net, scaled
from paper.small_net import Shape, SmallNet
from tests.paper.test_relu_vs_tanh import MadeJob

SHAPE = Shape((4, 4, 4), (3, 2))


@pytest.fixture
def net():
    return SmallNet(SHAPE, 3, 0)


@pytest.fixture
def features():
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


def test_inverted_dropout_is_the_same_function(net, features):
    other = inverted(net, lambda: SmallNet(SHAPE, 3, 1))
    assert torch.allclose(other.hidden(features), net.hidden(features, scaled), atol=1e-6)
    ours, theirs = (torch.Generator().manual_seed(2) for _ in range(2))
    trained = net.hidden(features, dropping(ours)), other.hidden(features, dropping(theirs, 2.0))
    assert torch.allclose(*trained, atol=1e-6) and not torch.allclose(trained[0], net.hidden(features))


def test_one_sampled_net_is_the_same_for_all_images(net, features):
    mask = one_net(torch.Generator().manual_seed(0), (True, False))
    kept = mask(torch.ones(6, 50))
    assert (kept == kept[0]).all() and 0 < kept[0].sum() < 50
    assert (mask(torch.ones(6, 50)) == 0.5).all()


def test_where_the_last_hidden_layer_is_dropped_the_geometric_mean_is_the_scaled_net(net, features):
    """By all 2 x 2 masks of two neurons, each once: exactly, as the paper's text has it."""
    logs = []
    for mask in itertools.product((0.0, 1.0), repeat=2):
        calls = iter([scaled, lambda x, mask=mask: x * torch.tensor(mask)])
        logs.append(net.hidden(features, lambda x, calls=calls: next(calls)(x)).log_softmax(dim=1))
    geometric = torch.stack(logs).mean(dim=0).log_softmax(dim=1)
    assert torch.allclose(geometric, net.hidden(features, scaled).log_softmax(dim=1), atol=1e-5)


def test_averages_come_near_that_with_more_nets(net, features):
    found = averages(net, features, torch.tensor([0, 1, 2, 0, 1]), 512, (False, True))
    rows = found["by_count"]
    assert [row["nets"] for row in rows] == [2**power for power in range(10)]
    assert rows[-1]["divergence"] < rows[0]["divergence"] / 20
    assert rows[0]["arithmetic"] == pytest.approx(rows[0]["geometric"])


def test_the_whole_way(tmp_path, monkeypatch):
    shape = Shape((4, 4, 4), (8, 8))
    monkeypatch.setattr(study, "SMALL", study.Size(64, 16, shape, 16, 0.05, 2, 16))
    found = study.trials(MadeJob(None, tmp_path, 2, torch.device("cpu"), False))
    about = study.answer(found)
    json.dumps(about)
    assert about["inverted"]["trained"] < 1e-5 and about["inverted"]["training"] < 1e-9
    text = "\n".join(study.text(about))
    assert "the geometric mean of 16: test error" in text and "without dropout: training error" in text
    for drawn in study.pictures(found).values():
        assert ElementTree.fromstring(drawn) is not None
    assert study.trials(MadeJob(None, tmp_path, 2, torch.device("cpu"), False)) == found
