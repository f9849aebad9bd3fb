"""Why times 0.5 at test (section 4.2)? What it stands for, on trained nets; and what dropout does to errors."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pages.plot import Axis, Line, Plot, draw, round_up, standalone
from paper.images import ImageSet
from paper.job import Job
from paper.parts import of_net, spread, spread_text
from paper.sampled_nets import DROPPED, averages, dropping, inverted, scaled
from paper.small_net import CHUNK, Prepare, Shape, SmallNet, orders, stepper, subset, wrong_share

PAPER: dict[str, Any] = {"iterations": 2, "section": "4.2"}
SIDE = 32
NETS = ("with dropout", "without dropout")
STEPS = 50  # after which the two forms are compared
BOTH, LAST = (True, True), (False, True)  # hidden layers that are dropped from


class Size(NamedTuple):
    """images: to train on; tested: to test on; most: sampled nets."""

    images: int
    tested: int
    shape: Shape
    batch_size: int
    lr: float
    epochs: int
    most: int


SMALL = Size(2_000, 2_000, Shape((16, 16, 32), (256, 256)), 32, 0.01, 40, 256)
FULL = Size(50_000, 10_000, Shape((32, 32, 64), (1024, 1024)), 128, 0.01, 60, 4096)


def trials(job: Job) -> list[dict[str, Any]]:
    size = FULL if job.full else SMALL
    data = functools.cache(lambda: job.images(SIDE))
    work: dict[str, Callable[[], dict[str, Any]]] = {}
    for seed in range(job.seeds):
        for net in NETS:
            work[f"{net}-seed{seed}"] = functools.partial(training, data, size, net, seed)
        work[f"inverted-seed{seed}"] = functools.partial(both_forms, data, size, seed)
    return list(job.run("dropout", {"size": size._asdict()}, work, "training").values())


def training(data: Callable[[], ImageSet], size: Size, name: str, seed: int) -> dict[str, Any]:
    """{"net", "seed", "history"}, and for the one with dropout "both" and "last", see `averages`, and "inverted", how
    far at most the logits of the same net in inverted form are from its own, as a share of the largest logit.

    history lists (epoch, training error, test error), both of the net as it is tested.
    """
    loaded = data()
    train, test = subset(loaded.train, size.images), subset(loaded.test, size.tested)
    device, prepare = train.images.device, Prepare(train.images)
    make = functools.partial(SmallNet, size.shape, len(loaded.classes), seed)
    net, rng = make().to(device), torch.Generator(device).manual_seed(seed)
    drops = name == NETS[0]
    step = stepper(net, train, prepare, size.lr, rng, dropping(rng) if drops else lambda x: x)

    def logits(images: Tensor) -> Tensor:
        found: Tensor = net(prepare(images), scaled if drops else lambda x: x)
        return found

    history = []
    for epoch, batches in enumerate(orders(len(train.labels), size.batch_size, seed)):
        if epoch == size.epochs:
            break
        for rows in batches.to(device):
            step(rows)
        history.append((epoch + 1, wrong_share(logits, train), wrong_share(logits, test)))
    result = {"net": name, "seed": seed, "history": history}
    if drops:
        with torch.no_grad():
            features = torch.cat([net.features(prepare(part)) for part in torch.split(test.images, CHUNK)])
            own, other = net.hidden(features, scaled), inverted(net, make).hidden(features)
            result["inverted"] = float((own - other).abs().max() / own.abs().max())
        for key, layers in (("both", BOTH), ("last", LAST)):
            result[key] = averages(net, features, test.labels, size.most, layers)
    return result


def both_forms(data: Callable[[], ImageSet], size: Size, seed: int) -> dict[str, Any]:
    """{"seed", "steps", "difference"}: the paper's form and the inverted one, trained in float64 with the same masks
    from the same function: how far at most their logits are apart after STEPS, as a share of the largest.

    The inverted form's halved weights have twice the gradients, so that their learning rate is a quarter.
    """
    loaded = data()
    train = subset(loaded.train, size.images)
    device, prepare = train.images.device, Prepare(train.images)
    make = functools.partial(SmallNet, size.shape, len(loaded.classes), seed)
    ours = make().to(device).double()
    theirs = inverted(ours, make)
    halved = [layer.weight for layer in list(theirs.dense)[1:]]
    others = [p for p in theirs.parameters() if not any(p is weight for weight in halved)]
    rates: list[dict[str, Any]] = [{"params": others}, {"params": halved, "lr": size.lr / 4}]
    forms = (
        (ours, torch.optim.SGD(ours.parameters(), size.lr, momentum=0.9), 1.0),
        (theirs, torch.optim.SGD(rates, size.lr, momentum=0.9), 1 / (1 - DROPPED)),
    )
    batches = next(orders(len(train.labels), size.batch_size, seed)).to(device)
    for number in range(STEPS):
        rows = batches[number % len(batches)]
        images = prepare(train.images[rows]).double()
        for net, optimizer, scale in forms:
            rng = torch.Generator(device).manual_seed(number)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(images, dropping(rng, scale)), train.labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        own, other = ours(images, scaled), theirs(images)
    return {
        "net": "inverted",
        "seed": seed,
        "steps": STEPS,
        "difference": float((own - other).abs().max() / own.abs().max()),
    }


def answer(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Errors in percent, over seeds, at the end and at the best epoch; the ways to test, over seeds; the two forms."""
    about: dict[str, Any] = {"errors": {}, "ways": {}}
    for net in NETS:
        last = [one["history"][-1] for one in of_net(trials, net)]
        training, testing = ([100 * row[column] for row in last] for column in (1, 2))
        about["errors"][net] = {
            "training": spread(training),
            "test": spread(testing),
            "gap": spread([test - train for train, test in zip(training, testing, strict=True)]),
            "best epoch": spread([min(one["history"], key=lambda row: row[2])[0] for one in of_net(trials, net)]),
        }
    dropped = of_net(trials, NETS[0])
    most = dropped[0]["both"]["by_count"][-1]["nets"]
    ways: dict[str, Callable[[dict[str, Any]], dict[str, float]]] = {
        "one sampled net": lambda both: both["single"],
        f"the mean of {most}": lambda both: both["by_count"][-1]["arithmetic"],
        f"the geometric mean of {most}": lambda both: both["by_count"][-1]["geometric"],
        "all neurons, times 0.5": lambda both: both["scaled"],
    }
    for way, of in ways.items():
        found = [of(one["both"]) for one in dropped]
        about["ways"][way] = {
            "error": spread([100 * one["error"] for one in found]),
            "nats": spread([one["nats"] for one in found]),
        }
    about["divergence"] = {
        key: [
            {"nets": row["nets"], "nats": spread([one[key]["by_count"][number]["divergence"] for one in dropped])}
            for number, row in enumerate(dropped[0][key]["by_count"])
        ]
        for key in ("both", "last")
    }
    forms = of_net(trials, "inverted")
    about["inverted"] = {"trained": max(one["inverted"] for one in dropped)}
    about["inverted"] |= {"steps": forms[0]["steps"], "training": max(one["difference"] for one in forms)}
    return about


def text(about: dict[str, Any]) -> list[str]:
    form = about["inverted"]
    rows = [
        f"times 0.5 at test, or inverted: a trained net's logits differ by {form['trained']:.0e} of the largest, "
        f"those of nets trained in both forms by {form['training']:.0e} after {form['steps']} steps in float64"
    ]
    for way, found in about["ways"].items():
        nats = found["nats"]
        rows.append(f"{way}: test error {spread_text(found['error'])} %, cross-entropy {nats['mean']:.3f}")
    for key, what in (("both", "both hidden layers"), ("last", "the last hidden layer alone")):
        last = about["divergence"][key][-1]
        first = about["divergence"][key][0]
        rows.append(
            f"neurons of {what} dropped: the net times 0.5 is {last['nats']['mean']:.1e} nats from the geometric mean "
            f"of {last['nets']} nets, {first['nats']['mean']:.1e} from one net"
        )
    for net, found in about["errors"].items():
        errors = ", ".join(f"{name} error {spread_text(found[name])} %" for name in ("training", "test"))
        rows.append(f"{net}: {errors}; best at epoch {spread_text(found['best epoch'])}")
    return rows


def pictures(trials: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {"dropout": _by_count(of_net(trials, NETS[0])), "dropout-training": _errors(trials)}


def _by_count(dropped: Sequence[dict[str, Any]]) -> str:
    """Cross-entropy by the number of nets that are averaged, the mean of the seeds."""
    rows = range(len(dropped[0]["both"]["by_count"]))

    def mean(row: int, way: str) -> float:
        return spread([one["both"]["by_count"][row][way]["nats"] for one in dropped])["mean"]

    flat = spread([one["both"]["scaled"]["nats"] for one in dropped])["mean"]
    lines = [
        Line("their mean", [(row, mean(row, "arithmetic")) for row in rows], 0),
        Line("their geometric mean", [(row, mean(row, "geometric")) for row in rows], 1),
        Line("all neurons, times 0.5", [(row, flat) for row in rows], 2),
    ]
    axis = Axis("test cross-entropy, nats", round_up(max(y for line in lines for _, y in line.points)), "{:.2f}".format)
    title = "sampled nets that are averaged, as a power of two"
    what = "Test cross-entropy of averages of sampled nets, and of the net that stands for them"
    return standalone(draw(Plot(what, lines, axis, len(rows) - 1, x_title=title, width=640, height=320)))


def _errors(trials: Sequence[dict[str, Any]]) -> str:
    lines, color = [], 0
    for net in NETS:
        for column, what in ((1, "training"), (2, "test")):
            histories = [one["history"] for one in of_net(trials, net)]
            means = [spread([100 * row[column] for row in rows])["mean"] for rows in zip(*histories, strict=True)]
            lines.append(Line(f"{what} error {net}", list(enumerate(means, start=1)), color))
            color += 1
    axis = Axis("error, the mean of the seeds", 100.0, "{:.0f} %".format)
    what = "Training and test error over epochs, with and without dropout"
    return standalone(draw(Plot(what, lines, axis, len(means), x_title="epochs", width=640, height=360)))
