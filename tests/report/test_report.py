"""`report`: a page of runs that needs nothing else, has all its parts, and says what it lacks and how to get it."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import cli
from inference.figures import Shown
from inference.predict import Answer
from report.answers import Answers, Guess
from report.page import page
from report.runs import Run
from shards.dataset import Dataset
from tests.support.browser import assert_fits_a_phone, needs_chromium
from trainer.confusions import Confusions
from trainer.evaluate import Measured
from trainer.run_folder import add_bad_samples

HOSTILE = "<script>alert(1)</script>\"onerror='&"
SECTIONS = (
    *("Learning and speed", "The hardest classes and the commonest confusions", "The first layer&#x27;s kernels"),
    *("Guesses at images of val", "Configuration", "The data set", "Bad samples"),
)


def report(*words):
    return CliRunner().invoke(cli.main, ["report", *map(str, words)])


@pytest.fixture(scope="module")
def second(run, tmp_path_factory):
    """The same run elsewhere: its data set is not where it says, its learning rate dropped, an image was bad."""
    copy = tmp_path_factory.mktemp("second") / "copy"
    shutil.copytree(run, copy)
    record = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**record, "data": "/absent/shards", "lr": 0.02}))
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train" and line["step"] > 10:
            line["lr"] /= 10
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    add_bad_samples(copy, {"train-000000.tar: broken.jpg": "it is truncated"})
    return copy


@pytest.fixture(scope="module")
def html(run, second, data, tmp_path_factory):
    """The page of both, with their data set."""
    out = tmp_path_factory.mktemp("page") / "page.html"
    done = report(run, second, "--out", out, "--data", data, "--device", "cpu")
    assert done.exit_code == 0 and "notice" not in done.output, done.output
    return out.read_text()


def test_two_runs_stand_beside_one_another_with_all_parts(html, run, second, data):
    assert re.findall("<h2>(.*?)</h2>", html) == ["The runs together", *SECTIONS]
    for name in (run, second):
        assert html.count(f"<h3>{name}</h3>") == 4  # curves, confusions, kernels, guesses
    assert html.count("<svg") == 2 + 2 * 2
    assert html.count("Tower 2: ") == 2 * 2  # its alternative text and its caption
    assert html.count('src="data:image/jpeg') == 2 * 8 and html.count('src="data:image/png') == 2 * 2
    assert html.count(">lr 0.0001</text>") == 1 and html.count(">best ") == 2
    assert "waiting for data" in html and "<td>--lr (differs)</td><td>0.001</td><td>0.02</td><td>0.01</td>" in html
    dataset = Dataset.load(data)
    assert all(name in html for name in dataset.classes) and dataset.fingerprint in html
    assert "train-000000.tar: broken.jpg" in html and "it is truncated" in html


def test_the_page_needs_nothing_else(html):
    assert not re.search(r"https?:|href=|@import|url\(|<script|<link|srcset", html)
    assert {*re.findall(r'src="(.{10})', html)} == {"data:image"}


def test_a_run_alone_without_its_data_set_says_what_is_missing_and_how_to_get_it(second, data, tmp_path):
    out = tmp_path / "page.html"
    done = report(second, "--out", out, "--device", "cpu")
    assert done.exit_code == 0 and "notice: " in done.stderr and "/absent/shards does not exist" in done.stderr
    html = out.read_text()
    assert "--out FILE --data DIR" in html and "is not at hand" in html and "Tower 2: " in html
    assert "<h1>" in html and re.findall("<h2>(.*?)</h2>", html) == [*SECTIONS]
    assert html.count("Missing: see the top of the page.") == 2
    assert "leaves out is not known without it" in html


def test_a_run_whose_checkpoints_are_gone_still_has_its_curves(run, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run / name, tmp_path / name)
    done = report(tmp_path, "--out", tmp_path / "page.html", "--device", "cpu")
    assert done.exit_code == 0 and "has written none yet" in done.output
    html = (tmp_path / "page.html").read_text()
    assert html.count("<svg") == 2 and html.count("Missing: see the top") == 3


def test_a_data_set_of_other_classes_answers_nothing(run, data, tmp_path):
    """Where `config.json` names it that is said; where --data does, it is an error."""
    other, copy = tmp_path / "other", tmp_path / "copy"
    shutil.copytree(data, other)
    first = Dataset.load(data).classes[0]
    (other / "dataset.json").write_text((other / "dataset.json").read_text().replace(f'"{first}"', '"zebra"'))
    shutil.copytree(run, copy)
    record = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**record, "data": str(other)}))
    done = report(copy, "--out", tmp_path / "page.html", "--device", "cpu")
    assert done.exit_code == 0 and f"{other} is another data set than the run's" in done.stderr
    assert "zebra, is none of the 4 classes" in done.stderr
    assert (tmp_path / "page.html").read_text().count("Missing: see the top of the page.") == 2
    done = report(run, "--out", tmp_path / "page.html", "--device", "cpu", "--data", other)
    assert done.exit_code == 1 and done.stderr.splitlines()[-1].startswith(f"Error: class 0 of {other}, zebra, is none")


def test_a_data_set_without_val_has_kernels_and_facts_alone(run, data, tmp_path):
    only_train = tmp_path / "train"
    shutil.copytree(data, only_train)
    about = json.loads((only_train / "dataset.json").read_text())
    del about["splits"]["val"]
    (only_train / "dataset.json").write_text(json.dumps(about))
    done = report(run, "--out", tmp_path / "page.html", "--device", "cpu", "--data", only_train)
    assert done.exit_code == 0 and f"need a val split, and {only_train} has none" in done.stderr


def test_hostile_names_are_text(run):
    """Of classes, words, folders, bad samples and options."""
    read = Run.load(run)
    hostile = Run(run / HOSTILE, read.record, read.config, read.trained, read.evaluated, {HOSTILE: HOSTILE})
    counts = torch.tensor([[1, 2], [3, 4]])
    confusions = Confusions(counts, ["a", HOSTILE], {"a": HOSTILE})
    guess = Guess(Shown(np.zeros((8, 8, 3), np.uint8), "a", b""), [Answer("a", HOSTILE, 0.5), Answer(HOSTILE, None, 0)])
    result = {"top1_error": 0.5, "top5_error": None, "samples": 10}
    answers = Answers(
        kernels=[(HOSTILE, Image.new("RGB", (2, 2)))],
        measured=Measured(result, confusions, [1], {HOSTILE: HOSTILE}),
        guesses=[guess],
        words={"a": HOSTILE},
        missing=[HOSTILE],
    )
    html = page([hostile, read], [answers, Answers()])
    assert "<script" not in html and '"onerror' not in html and html.count("&lt;script&gt;") > 20


def test_the_curve_alone_is_an_svg(second, tmp_path):
    done = report(second, "--out", tmp_path / "curve.svg")
    assert done.exit_code == 0, done.output
    root = ElementTree.parse(tmp_path / "curve.svg").getroot()
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "lr 0.0001" in texts and "training loss, nats" in texts and any(text.startswith("best ") for text in texts)


def test_what_cannot_be_reported_is_one_line(run, data, images, tmp_path):
    (tmp_path / "fresh").mkdir()
    shutil.copy(run / "config.json", tmp_path / "fresh")
    (tmp_path / "broken").mkdir()
    record = json.loads((run / "config.json").read_text())
    (tmp_path / "broken" / "config.json").write_text(json.dumps({**record, "batch_size": "many"}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(
        json.dumps({name: value for name, value in record.items() if name != "dataset"})
    )
    out = tmp_path / "page.html"
    for words, complaint in (
        ((data, "--out", out), f"{data} is not a run: it holds no config.json"),
        ((tmp_path / "fresh", "--out", out), "has no logged step yet"),
        ((tmp_path / "broken", "--out", out), "is not a run that can be read"),
        ((tmp_path / "other", "--out", out), "is not a run that can be read (KeyError: 'dataset')"),
        ((run, run, "--out", tmp_path / "curve.svg"), "is the learning curve of one run"),
        ((run, "--out", tmp_path / "page.pdf"), "give a name that ends in .html, .svg"),
        ((run, "--out", out, "--data", images), f"{images}"),
    ):
        done = report(*words)
        assert done.exit_code == 1 and complaint in done.output and done.output.count("\n") == 1, done.output
        assert not out.exists()


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overflows_a_phone_and_the_dark_is_dark(html, tmp_path, dark):
    assert_fits_a_phone(html, tmp_path, dark)
