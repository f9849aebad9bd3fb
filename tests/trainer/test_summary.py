"""A finished run says what it reached, where it lies, and commands that work."""

import json
import shlex

from click.testing import CliRunner

import cli
from tests.support.training_runs import run
from trainer import checkpoint, metrics
from trainer.run_folder import BEST
from trainer.summary import summary


def test_the_summary_names_the_best_evaluation_and_the_next_commands_work(small_data, unbroken, tmp_path):
    lines = summary(unbroken, str(small_data)).splitlines()
    last = metrics.read(unbroken, "train")[-1]
    assert lines[0].startswith(f"Done: loss {last['loss']:#.5g}, top-1 error ") and "10 crops: top-1" in lines[0]
    assert lines[1] == f"Checkpoint: {unbroken / 'checkpoint-00000020.safetensors'}"
    kept = checkpoint.load(unbroken / BEST)
    error = dict(kept["errors"])[kept["step"]]
    assert lines[2].startswith(f"Best: {unbroken / BEST}, top-1 error {error:.1%} after step {kept['step']}, epoch ")
    assert lines[3] == f"Next: python cli.py report {unbroken} --out report.html"
    assert lines[4].endswith(f"predict --checkpoint {unbroken} --which best IMAGE...")
    done = CliRunner().invoke(cli.main, ["report", str(unbroken), "--out", str(tmp_path / "report.html")])
    assert done.exit_code == 0 and "notice" not in done.output, done.output
    words = [*shlex.split(lines[5])[2:], "--device", "cpu", "--json"]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 0 and json.loads(done.stdout)["crops"] == 10, done.output


def test_a_run_without_evaluation_says_what_there_is(tmp_path, small_data, capfd):
    run(small_data, tmp_path / "run", steps=2, checkpoint_every=1)
    (tmp_path / "run" / BEST).unlink()
    said = capfd.readouterr().err
    assert f"Done: loss {metrics.read(tmp_path / 'run', 'train')[-1]['loss']:#.5g}" in said
    lines = (tmp_path / "run" / metrics.FILE).read_text().splitlines()
    (tmp_path / "run" / metrics.FILE).write_text("\n".join(line for line in lines if '"eval"' not in line) + "\n")
    assert len(summary(tmp_path / "run", "d").splitlines()) == 4
