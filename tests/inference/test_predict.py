"""`predict` sees what `eval` sees, takes what Pillow reads, and names what cannot be read."""

import io
import json
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cli
from inference.predict import Predictor, crops
from pipeline.loader import Loader
from pipeline.settings import Settings
from shards.images import read_square
from trainer.run_folder import find_checkpoint


def predict(*words, input=None):
    done = CliRunner().invoke(cli.main, ["predict", "--device", "cpu", *map(str, words)], input=input)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture(scope="module")
def some(images):
    return sorted(file for file in (images / "val").rglob("*") if file.is_file())[:3]


@pytest.mark.parametrize("view, count", [("center", 1), ("ten", 10)])
def test_the_crops_are_those_of_evaluation(stored_256, view, count):
    """Bytes apart by one at most, for the decoders are two."""
    batch = next(Loader(stored_256, "val", view, batch_size=4, settings=Settings(threads=1)).epoch(0))
    with tarfile.open(stored_256.tars("val")[0]) as tar:
        jpegs = [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]
    for jpeg, theirs in zip(jpegs, batch.images.numpy(), strict=False):
        ours = crops(np.asarray(read_square(jpeg, 256)), count)
        assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_a_folder_a_pattern_and_standard_input_are_answered(run, images, some):
    folder = some[0].parent
    done = predict("--checkpoint", run, "--json", folder, f"{folder}/*.*", "-", input=some[0].read_bytes())
    answers = json.loads(done.stdout)
    files = [image["file"] for image in answers["images"]]
    inside = sorted(map(str, folder.glob("*.*")))
    assert done.exit_code == 0 and files == [*inside, *inside, "-"]
    first, last = answers["images"][0]["top"], answers["images"][-1]["top"]
    assert first == last and len(first) == 4  # of four classes there are no five
    assert sum(answer["probability"] for answer in first) == pytest.approx(1)
    assert [answer["probability"] for answer in first] == sorted((a["probability"] for a in first), reverse=True)


def test_any_kind_of_image_is_answered_alike(trained, some):
    """The same pixels as PNG and WebP, and transparent ones on white."""
    predictor, image = Predictor(trained, 10, 5), Image.open(some[0])
    expected = predictor.answers(some[0].read_bytes())
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = io.BytesIO()
        image.convert("RGBA" if kind == "PNG" else "RGB").save(data, kind, **options)
        for ours, theirs in zip(predictor.answers(data.getvalue()), expected, strict=True):
            assert ours.name == theirs.name and ours.probability == pytest.approx(theirs.probability, abs=0.01)


def test_a_file_that_cannot_be_read_is_named_and_the_rest_goes_on(run, some, tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    done = predict("--checkpoint", run, tmp_path / "notes.txt", some[0])
    assert done.exit_code == 1
    assert done.stderr.endswith(f"{tmp_path / 'notes.txt'} cannot be read: not an image\n")
    assert done.stdout.startswith(f"{some[0]}\n  ") and done.stdout.count("%") == 4


def test_an_argument_that_means_no_file_is_named_and_the_rest_goes_on(run, some, tmp_path):
    nothing = {
        str(tmp_path / "absent.jpg"): "there is no such file",
        str(tmp_path): "a folder without files",
        f"{tmp_path}/*.jpg": "there is no such file",
    }
    done = predict("--checkpoint", run, "--json", some[0], *nothing, some[1])
    answers = json.loads(done.stdout)
    assert done.exit_code == 1 and [image["file"] for image in answers["images"]] == [str(some[0]), str(some[1])]
    assert answers["unreadable"] == [{"file": name, "reason": reason} for name, reason in nothing.items()]
    assert all(f"{name} cannot be read: {reason}\n" in done.stderr for name, reason in nothing.items())


def test_no_image_at_all_is_an_error(run, tmp_path):
    for name in (tmp_path / "absent.jpg", tmp_path, f"{tmp_path}/*.jpg"):
        done = predict("--checkpoint", run, name)
        assert done.exit_code == 1 and f"{name}: there is no such image" in done.stderr


def test_the_best_checkpoint_is_taken_where_it_is_asked_for(run, some):
    for which in ("newest", "best"):
        done = predict("--checkpoint", run, "--which", which, "--json", some[0])
        assert json.loads(done.stdout)["checkpoint"] == str(find_checkpoint(run, which))
    assert find_checkpoint(run, "best").name == "best.safetensors"
