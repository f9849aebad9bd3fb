"""`eval` evaluates any checkpoint in what the device has, with the run's own mean and on the run's own classes; its
messages name only options that it has."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.loader import BAD_LABEL, Batch
from pipeline.preprocess import Preprocess
from pipeline.stats import Stats
from shards.dataset import Dataset
from shards.errors import InputError
from trainer import checkpoint
from trainer import evaluate as evaluation
from trainer.alexnet import model_from_config
from trainer.config import TrainConfig
from trainer.confusions import Confusions
from trainer.evaluate import EvalOptions, evaluate, evaluate_rank, match_classes, renumbered, run_evaluation
from trainer.launch import launch
from trainer.model_parallel import unsharded_layout
from trainer.optimizer import build_optimizer
from trainer.precision import Precision
from trainer.rank import RankContext
from trainer.train import train


def write_checkpoint(data: Path, run: Path, stats=None, classes=None, **options) -> Path:
    """A checkpoint of a narrow model with initial weights, as a run with these options would write it; its mean and its
    classes are the data set's unless they are given."""
    classes = classes or Dataset.load(data).classes
    config = TrainConfig(str(data), run, width=0.05, **options)
    model = model_from_config(config, len(classes), unsharded_layout())
    model.init_weights(seed=0)
    run.mkdir()
    writer = checkpoint.CheckpointWriter(run, writes=True, keep=1, stats=stats or Stats.load(data))
    record = {"classes": list(classes), **config.recorded()}
    writer.save(1, model, build_optimizer("paper", model, 0.01), {"config": record, "errors": []})
    writer.wait()
    return checkpoint.list_checkpoints(run)[0]


def options(path: Path) -> EvalOptions:
    return EvalOptions((path,), split="val", crops=1, batch_size=8, decoding={}, as_json=True)


def evaluated(data: Path, path: Path, capfd) -> tuple[dict, list[str]]:
    """The result, and the lines on stderr."""
    run_evaluation(data, 1, "cpu", options(path))
    output = capfd.readouterr()
    result = json.loads(output.out)
    return {name: result[name] for name in ("top1_error", "top5_error", "samples")}, output.err.splitlines()


def test_a_tf32_checkpoint_is_evaluated_in_fp32_on_a_cpu_and_this_is_reported_in_one_line(data, tmp_path, capfd):
    path = write_checkpoint(data, tmp_path / "tf32", precision="tf32")
    result, lines = evaluated(data, path, capfd)
    assert [line for line in lines if "tf32" in line] == [
        "trained in tf32, which needs a CUDA device: evaluating in fp32"
    ]
    plain, lines = evaluated(data, write_checkpoint(data, tmp_path / "fp32"), capfd)
    assert result["top5_error"] is None  # of four classes
    assert result == plain and result["samples"] == 22 and not [line for line in lines if "fp32" in line]


def test_a_one_tower_checkpoint_on_two_devices_is_refused_with_a_remedy_that_eval_has(data, tmp_path):
    path = write_checkpoint(data, tmp_path / "run", variant="one-tower")
    with pytest.raises(InputError, match=r"^a model of one tower cannot be split into two: choose --gpus 1$"):
        run_evaluation(data, 2, "cpu", options(path))


def test_the_number_of_devices_is_refused_with_the_options_that_the_command_has():
    number = r"--gpus 3: AlexNet has two towers, so it takes 1 \(both on one device\) or an even number"
    with pytest.raises(InputError, match=f"^{number}$"):
        launch(evaluate_rank, 3, "cpu")
    with pytest.raises(InputError, match=f"^{number}, or --parallel data$"):
        launch(evaluate_rank, 3, "cpu", parallel="towers")


class OneHot(torch.nn.Module):
    """A model that says of an image the class that its first pixel is."""

    classes, layout = 4, unsharded_layout()

    def probabilities(self, images):
        return torch.nn.functional.one_hot(images.flatten(1)[:, 0].long(), 4).float()


def test_classes_in_another_order_are_matched_by_name(data, tmp_path, capsys):
    dataset, file = Dataset.load(data), tmp_path / "checkpoint"
    names = [dataset.classes[number] for number in (2, 0, 3, 1)]
    numbers = match_classes(dataset, tuple(names), file)
    assert numbers.tolist() == [1, 3, 0, 2] and "by name" in capsys.readouterr().err
    assert match_classes(dataset, (*names, "another"), file).tolist() == [1, 3, 0, 2]
    assert match_classes(dataset, dataset.classes, file) is None
    context = RankContext(torch.device("cpu"), 0, 1, unsharded_layout(), 1)
    labels = torch.tensor([0, 1, 2, 3, BAD_LABEL])
    images = torch.tensor([1, 3, 0, 0, 0]).view(5, 1, 1, 1, 1).expand(5, 1, 3, 2, 2)  # all but the fourth are right
    batches = renumbered([Batch(images, labels, None, valid=5)], numbers)
    result = evaluate(OneHot(), batches, lambda crops, _: crops, context, Precision("fp32", context.device))
    assert result["samples"] == 4 and result["top1_error"] == 0.25


@pytest.mark.parametrize("renamed, named", [(0, "n0"), (2, "n2")])
def test_other_classes_are_refused_by_the_first_that_differs(data, tmp_path, renamed, named):
    classes = list(Dataset.load(data).classes)
    names = [f"n{number}" if number >= renamed else name for number, name in enumerate(classes)]
    path = write_checkpoint(data, tmp_path / "run", classes=names)
    with pytest.raises(InputError, match=rf"class {renamed} of .*, {classes[renamed]}, is none.*is {named}: give"):
        run_evaluation(data, 1, "cpu", options(path))


def test_classes_without_names_are_matched_by_number_and_this_is_reported(data, tmp_path, capfd):
    result, _ = evaluated(data, write_checkpoint(data, tmp_path / "run"), capfd)
    again, lines = evaluated(data, write_checkpoint(data, tmp_path / "again", classes="0123"), capfd)
    assert again == result and "have no names" in "".join(lines)


def test_the_mean_is_the_runs_own_whatever_the_data_set_has(data, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(evaluation, "Preprocess", lambda stats, *more: used.append(stats) or Preprocess(stats, *more))
    stats = Stats.load(data)
    dark = replace(stats, mean_image=stats.mean_image / 2, eigenvalues=stats.eigenvalues * 3)
    path = write_checkpoint(data, tmp_path / "run", stats=dark)
    # A set of nothing but the val split, which has no mean
    alone = Dataset.load(data)
    (tmp_path / "alone").mkdir()
    for shard in alone.split("val").shards:
        for name in (shard.name, Path(shard.name).with_suffix(".idx")):
            shutil.copy2(data / name, tmp_path / "alone")
    replace(alone, root=tmp_path / "alone", splits={"val": alone.split("val")}).save()
    for folder in (data, tmp_path / "alone"):
        run_evaluation(folder, 1, "cpu", options(path))
    assert len(used) == 2 and all(each.equals(dark) and not each.equals(stats) for each in used)


def test_a_checkpoint_of_before_the_mean_was_kept_takes_the_data_sets_and_reports_it(data, tmp_path, capfd):
    path = write_checkpoint(data, tmp_path / "run")
    result, _ = evaluated(data, path, capfd)
    state = checkpoint.load(path)
    tensors = {f"{kind}.{name}": state[kind][name] for kind in ("parameters", "velocity") for name in state[kind]}
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    kept = {name: state[name] for name in ("format", "step", "config", "errors")}
    checkpoint.write(path, tensors, kept)
    again, lines = evaluated(data, path, capfd)
    assert again == result and len([line for line in lines if "before checkpoints held the mean image" in line]) == 1


@pytest.mark.parametrize("content", [b'{"width": 0.5}', b"", b"PK" + bytes(3000)])
def test_a_file_that_is_not_a_checkpoint_is_named_as_such(data, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config.json is not a readable checkpoint \(it does not begin"):
        run_evaluation(data, 1, "cpu", options(tmp_path / "config.json"))


def test_a_run_without_a_val_split_says_so_once(data, tmp_path, capsys):
    copy = tmp_path / "set"
    shutil.copytree(data, copy)
    dataset = Dataset.load(copy)
    replace(dataset, splits={"train": dataset.split("train")}).save()
    config = TrainConfig(copy, tmp_path / "run", width=0.05, batch_size=4, steps=1, final_crops=10, device="cpu")
    train(config)
    assert capsys.readouterr().err.count("has no val split: nothing is evaluated, and --final-crops 10 is ignored") == 1
    with pytest.raises(
        InputError, match=r"has no val split, only train \(`shard --val-share 0.1` draws one; `eval --split"
    ):
        Dataset.load(copy).split("val")


def test_several_checkpoints_answer_with_the_mean_of_their_probabilities(data, tmp_path, capfd):
    path = write_checkpoint(data, tmp_path / "one")
    alone, _ = evaluated(data, path, capfd)
    run_evaluation(data, 1, "cpu", replace(options(path), checkpoints=(path, path), per_class=True))
    together = json.loads(capfd.readouterr().out)
    assert {name: together[name] for name in alone} == alone and together["checkpoints"] == [str(path)] * 2
    assert sum(one["samples"] for one in together["classes"]) == alone["samples"]
    wrong = sum(one["samples"] for one in together["confusions"])
    assert wrong == pytest.approx(alone["top1_error"] * alone["samples"])

    class Says(torch.nn.Module):
        layout, classes = unsharded_layout(), 2

        def __init__(self, answer):
            super().__init__()
            self.answer = torch.tensor([answer])

        def probabilities(self, images):
            return self.answer

    mean = evaluation.Ensemble([Says([0.9, 0.1]), Says([0.2, 0.8])]).probabilities(torch.zeros(1))
    torch.testing.assert_close(mean, torch.tensor([[0.55, 0.45]]))


@pytest.mark.parametrize("change, word", [({"classes": "abcd"}, "classes"), ({"mean": "channel"}, "mean")])
def test_checkpoints_that_cannot_answer_together_are_refused(data, tmp_path, change, word):
    one, other = write_checkpoint(data, tmp_path / "one"), write_checkpoint(data, tmp_path / "other", **change)
    with pytest.raises(InputError, match=rf"one.*other.* differ in their {word}: give"):
        run_evaluation(data, 1, "cpu", replace(options(one), checkpoints=(one, other)))


def test_the_hardest_classes_and_confusions_are_reported_by_name():
    counts = torch.tensor([[8, 2, 0], [5, 5, 0], [0, 0, 0]])
    confusions = Confusions(counts, ["n0", "n1", "n2"], {"n1": "tabby, cat"})
    assert confusions.table().splitlines() == [
        "The hardest classes, top-1 error:",
        "   50.0% of 10  n1 (tabby, cat)",
        "   20.0% of 10  n0",
        "The commonest confusions:",
        "  5 x  n1 (tabby, cat) taken for n0",
        "  2 x  n0 taken for n1 (tabby, cat)",
    ]
