"""The studies of the net's parts: each at a size of seconds, and their arithmetic on made results."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from paper import lighting, lrn, pooling, towers
from paper.ablation import SMALL
from paper.parts import lines, loss_without, summary, verdict
from paper.trials import BRIGHTNESS, COMPLETE, NETS, kernel_images, trial
from tests.paper.test_ablation import made_images

STUDIES = {"towers": towers, "lrn": lrn, "pooling": pooling, "lighting": lighting}
SEEDS = 2


@pytest.fixture(scope="module")
def trials():
    """All nets with two seeds, after one step on eight images, as JSON gives them back."""
    recipe, data = SMALL._replace(width=0.05, epochs=1, batch_size=8), made_images(8, classes=6)
    made = [trial(net, recipe, data, data, seed) for seed in range(SEEDS) for net in NETS]
    return json.loads(json.dumps(made))


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_answers_and_draws(trials, name):
    study = STUDIES[name]
    nets = [COMPLETE, *study.PAPER]
    about = study.answer([made for made in trials if made["net"] in nets])
    json.dumps(about)
    text = "\n".join(study.text(about))
    for net, paper in study.PAPER.items():
        assert f"{net}, beside {COMPLETE}: top-1 error" in text
        assert all(f"paper {figure:+g}" in text for figure in paper.values())
    pictures = study.pictures(trials)
    assert name in pictures and all(picture.startswith(name) for picture in pictures)
    roots = {picture: ElementTree.fromstring(drawn) for picture, drawn in pictures.items()}
    circles = [element for element in roots[name].iter() if element.tag.endswith("circle")]
    assert len(circles) == SEEDS * len(nets)


def test_nets_of_one_seed_differ_in_their_part_alone(trials):
    """One step with the same crops: without lighting the net is another, without a part too."""
    first = {made["net"]: made["kernels"] for made in trials if made["seed"] == 0}
    assert len({first[net] for net in NETS if net != "one tower"}) == len(NETS) - 1
    assert len(kernel_images({"kernels": first["one tower"]})) == len(kernel_images({"kernels": first[COMPLETE]})) // 2


def test_what_is_kept_of_a_place_is_normalized_within_the_towers(trials):
    made = next(made for made in trials if made["net"] == COMPLETE)
    before, after = (np.array(made["place"][when]) for when in ("before", "after"))
    half = len(before) // 2
    squares = [np.convolve(part**2, np.ones(5))[2:-2] for part in (before[:half], before[half:])]
    assert before.max() > 0 and after == pytest.approx(before / (2 + 1e-4 * np.concatenate(squares)) ** 0.75, rel=1e-4)


def test_normalization_is_drawn_by_the_papers_formula():
    for neighbors in lrn.NEIGHBORS:
        for a, b in lrn.curve(neighbors, points=4):
            assert b == pytest.approx(a / (2 + 1e-4 * (a**2 + 4 * neighbors**2)) ** 0.75)


def test_flatter_images_answer_less_and_normalization_evens_that_out(trials):
    about = lrn.answer(trials)
    assert [row["brightness"] for row in about["brightness"]] == list(BRIGHTNESS)
    quarter = about["brightness"][0]
    assert quarter["flatter before"]["mean"] == pytest.approx(0.25, abs=0.02)
    assert quarter["flatter before"]["mean"] <= quarter["flatter after"]["mean"] < 1
    assert about["brightness"][-1]["darker after"]["mean"] == 1


def made_trial(net, seed, top1, top5):
    return {
        "net": net,
        "seed": seed,
        "by_brightness": [{"brightness": 1.0, "top1_error": top1, "top5_error": top5}],
    }


def test_differences_are_of_nets_of_the_same_seed():
    made = [made_trial("pooling 2/2", 1, 0.30, 0.12), made_trial(COMPLETE, 0, 0.25, 0.10)]
    made += [made_trial(COMPLETE, 1, 0.28, 0.13), made_trial("pooling 2/2", 0, 0.26, 0.10)]
    difference = loss_without(made, "pooling 2/2")
    assert difference["top1"] == {key: pytest.approx(v) for key, v in {"mean": 1.5, "lowest": 1, "highest": 2}.items()}
    assert difference["top5"] == {
        key: pytest.approx(v) for key, v in {"mean": -0.5, "lowest": -1, "highest": 0}.items()
    }
    text = "\n".join(lines(summary(made, pooling.PAPER)))
    assert "pooling 2/2: top-1 error 28.0 (26.0 to 30.0) %" in text
    assert "top-1 error +1.5 (+1.0 to +2.0) points; paper +0.4: higher with every seed" in text


def test_a_verdict_says_when_the_seeds_show_nothing():
    spread = {"mean": 0.5, "lowest": -1.0, "highest": 2.0}
    assert "disagree" in verdict(spread, 0.4) and "differ by more" in verdict(spread, 0.4)
    assert "differ by more" not in verdict(spread, 4)
    assert "other than in the paper" in verdict({**spread, "highest": -0.1}, 0.4)
    assert "one seed" in verdict({"mean": 1.0, "lowest": 1.0, "highest": 1.0}, 0.4)
