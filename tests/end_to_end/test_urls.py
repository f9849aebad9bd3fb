"""Commands take a data set's URL in place of its folder, with the same results."""

import json

import pytest

from trainer import metrics

pytest.importorskip("aiohttp", reason="aiohttp is not installed: http is not tested")


@pytest.mark.long
def test_throughput_bench_measures_a_set_at_a_url(data, tmp_path, serve, run_here):
    options = [
        "--data",
        serve(data).url,
        "--cache",
        tmp_path / "cache",
        "--json",
        tmp_path / "bench.json",
        "--seconds",
        0.1,
    ]
    run_here(
        "throughput-bench", *options, "--batch-size", 16, "--width", 0.05, "--device", "cpu", "--precision", "bf16"
    )
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["limits"]["storage"]["what"].endswith("cache of a URL's") and report["precision"] == "bf16"
    assert report["limits"]["matmul"]["what"].endswith("products in bf16")
    cold = run_here("throughput-bench", *options, "--cold", check=False)
    assert cold.returncode == 1 and "leave it out with a URL" in cold.stderr


@pytest.mark.long
def test_a_run_from_a_url_is_the_run_from_the_folder(data, tmp_path, serve, run_here):
    server = serve(data)
    small = ["--device", "cpu", "--width", 0.05, "--batch-size", 8, "--lr", 0.001, "--steps", 14, "--log-every", 1]
    runs = []
    for where in ([data], [server.url, "--cache", tmp_path / "cache", "--cache-size", "2MB"]):
        out = tmp_path / str(len(runs))
        run_here("train", "--data", *where, "--out", out, *small, "--gpus", 2)
        result = run_here("eval", "--data", *where, "--checkpoint", out, "--device", "cpu", "--json").stdout
        lines = [
            {key: value for key, value in line.items() if key not in ("img_per_s", "data_wait")}
            for line in metrics.read(out)
        ]
        runs.append((lines, {key: value for key, value in json.loads(result).items() if key != "checkpoint"}))
    assert runs[0] == runs[1]
    assert json.loads((tmp_path / "1" / "config.json").read_text())["data"] == server.url.rstrip("/")
    info = json.loads(run_here("info", server.url, "--json", "--cache", tmp_path / "cache").stdout)
    assert info["root"] == server.url.rstrip("/") and info["splits"]["train"]["samples"] == 96
    run_here("preview", server.url, "--cache", tmp_path / "cache", "--out", tmp_path / "far.png", "--images", 2)
    run_here("preview", data, "--out", tmp_path / "near.png", "--images", 2)
    assert (tmp_path / "far.png").read_bytes() == (tmp_path / "near.png").read_bytes()


def test_unfitting_url_options_are_one_line(data, tmp_path, run_here):
    for options, message in (
        (["info", data, "--cache", tmp_path], "are for a data set at a URL"),
        (["info", "https://a:sesame@host/set"], "the URL holds credentials"),
        (
            ["preview", data.as_uri(), "--cache", tmp_path, "--cache-size", "1MB", "--out", tmp_path / "x.png"],
            "raise --cache-size",
        ),
    ):
        done = run_here(*options, check=False)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
        assert "sesame" not in done.stderr


def test_shard_writes_to_a_bucket_what_it_writes_to_a_folder(images, data, s3, tmp_path, run_here):
    s3.create_bucket(Bucket="written")
    options = ["--shard-size", 400_000, "--workers", 1, "--cache", tmp_path]
    done = run_here("shard", images, "--out", "s3://written/set", *options)
    uploaded = sum(path.stat().st_size for path in data.glob("train*.tar")) / 1e6
    assert f" MB/s, {uploaded:.0f} MB uploaded" in done.stderr
    assert "Data set written to s3://written/set\n" in done.stdout and not [*(tmp_path / "uploads").iterdir()]
    keys = [found["Key"] for found in s3.list_objects_v2(Bucket="written")["Contents"]]
    assert sorted(keys) == [f"set/{path.name}" for path in sorted(data.iterdir())]
    for path in data.iterdir():
        assert s3.get_object(Bucket="written", Key=f"set/{path.name}")["Body"].read() == path.read_bytes(), path
    assert "s3://written/set: 4 classes" in run_here("info", "s3://written/set", "--cache", tmp_path).stdout


@pytest.mark.parametrize(
    "options, message",
    [
        (["--out", "https://host/set"], "https://host/set cannot be written to: http"),
        (["--out", "s3://me:sesame@host/set"], "the URL holds credentials"),
        (["--out", "nosuch://host/set"], "is not a URL that fsspec reads"),
        (["--out", "shards", "--cache", "cache"], "--cache is for an --out at a URL: leave it out"),
    ],
)
def test_an_out_that_is_refused_is_one_line(images, run_here, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_here("shard", images, *options, check=False)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
    assert "sesame" not in done.stderr and not [*tmp_path.iterdir()]
