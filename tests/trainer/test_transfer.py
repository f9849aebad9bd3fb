"""`--init` starts a run from another's weights, and says layer by layer which."""

import pytest
import torch
from click.testing import CliRunner

import cli
from shards.dataset import Dataset
from shards.errors import InputError
from tests.support.training_runs import run
from trainer import checkpoint
from trainer.alexnet import AlexNet
from trainer.run_folder import BEST, find_checkpoint
from trainer.transfer import start_from


def test_the_same_classes_take_every_layer_and_others_a_new_last_one(unbroken, small_data):
    file, classes = find_checkpoint(unbroken), Dataset.load(small_data).classes
    weights = checkpoint.load(file)["parameters"]
    for asked, knows in (
        (classes, ""),
        (("x", "y"), "as many others, or these in another order"),
        (tuple("abcd"), "2"),
    ):
        model = AlexNet(len(asked), width=0.05)
        model.init_weights(seed=9)
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        lines = start_from(model, file, asked)
        assert lines[0] == f"conv1: from {file}" and len(lines) == 8
        same = asked == classes
        last = f"fc8: from {file}" if same else f"fc8: new, for {len(asked)} classes; {file} knows {knows}"
        assert lines[-1] == last
        for name, tensor in model.state_dict().items():
            expected = weights if same or not name.startswith("fc8") else own
            assert torch.equal(tensor, expected[name]), name


def test_a_model_of_another_size_is_refused_with_the_options_to_give(unbroken, small_data, tmp_path):
    with pytest.raises(InputError, match=r"--init .*: its conv1 is of another size: give the --width and --variant"):
        run(small_data, tmp_path / "run", steps=1, init=unbroken, width=0.1)
    with pytest.raises(InputError, match=r"^--init .* does not exist"):
        run(small_data, tmp_path / "run", steps=1, init=tmp_path / "absent")


def test_a_run_begins_with_the_weights_and_goes_on_with_its_own(unbroken, data, tmp_path, capfd):
    out = tmp_path / "run"
    run(data, out, steps=1, init=unbroken, lr=1e-12)
    said = capfd.readouterr().err
    assert "conv5: from" in said and "fc8: new, for 4 classes" in said
    before, after = (checkpoint.load(find_checkpoint(one))["parameters"] for one in (unbroken, out))
    torch.testing.assert_close(after["conv5.weight"], before["conv5.weight"], rtol=0, atol=1e-6)
    run(data, out, steps=2, init=unbroken, lr=1e-12)  # --resume auto
    said = capfd.readouterr().err
    assert "Resumed after step 1 of 2" in said and "conv5: from" not in said


def test_the_command_takes_a_run_and_a_checkpoint_file(unbroken, small_data, tmp_path):
    words = ["train", "--data", small_data, "--width", 0.05, "--batch-size", 10, "--steps", 1, "--device", "cpu"]
    for number, given in enumerate((unbroken, unbroken / BEST)):
        done = CliRunner().invoke(
            cli.main, [*map(str, words), "--out", str(tmp_path / str(number)), "--init", str(given)]
        )
        assert done.exit_code == 0 and f"conv1: from {find_checkpoint(given)}" in done.stderr, done.output
