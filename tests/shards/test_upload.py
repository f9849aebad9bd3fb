"""A conversion to a URL leaves there what a local one leaves in its folder, whatever fails, and nothing elsewhere."""

import os
import signal
import subprocess
import sys
import time

import pytest

from shards import atomic
from shards.convert import ConvertOptions, write_dataset
from shards.errors import InputError
from shards.parts import Part
from shards.upload import target, upload_part, uploading
from tests.conftest import PROJECT
from tests.support.image_kinds import encoded, noise

pytest.importorskip("aiohttp", reason="aiohttp is not installed: URLs are not tested")
pytestmark = pytest.mark.usefixtures("quick_retries")

OPTIONS = ConvertOptions(shard_size=12_000, workers=1)
STATISTICS = b"what the caller computes"
FOREVER = 10**6
DONE = [*(f".train-00000{number}.done" for number in range(3)), *(f".val-00000{number}.done" for number in range(2))]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Class folders of tiny images."""
    root = tmp_path_factory.mktemp("tiny")
    for number in range(12):
        path = root / ("val" if number > 7 else "train") / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(size=(24 + number, 24))))
    return root


@pytest.fixture(scope="module")
def wanted(images, tmp_path_factory):
    """The files of a local run, with the statistics."""
    out = tmp_path_factory.mktemp("wanted") / "set"
    write_dataset(images, out, OPTIONS)
    return {path.name: path.read_bytes() for path in out.iterdir()} | {"stats.npz": STATISTICS}


@pytest.fixture
def at_url(proxy, s3):
    """`at_url()`: the files in the bucket, and their content."""

    def read():
        keys = [found["Key"] for found in s3.list_objects_v2(Bucket=proxy.bucket).get("Contents", [])]
        contents = {key: s3.get_object(Bucket=proxy.bucket, Key=key)["Body"].read() for key in keys}
        return {key.removeprefix("set/"): content for key, content in contents.items()}

    return read


@pytest.fixture
def convert(images, proxy, tmp_path, in_this_process):
    """`convert()`: the command, but for what the statistics are."""

    def run(url=f"s3://{proxy.bucket}/set", root=images, options=OPTIONS, cache=tmp_path / "cache", meanwhile=None):
        with uploading(root, target(url), options, cache) as dataset:
            if meanwhile:
                meanwhile()
            if not (dataset.root / "stats.npz").exists():
                (dataset.root / "stats.npz").write_bytes(STATISTICS)
        assert not [*(cache / "uploads").iterdir()]
        return dataset

    return run


def test_the_same_files_are_there_and_a_second_time_nothing_is_written(convert, at_url, wanted, proxy):
    assert convert().where == f"s3://{proxy.bucket}/set"
    assert at_url() == wanted
    # The description comes last of all but for the removal of the hidden files
    put = [name for method, name in proxy.requested if method == "PUT"]
    assert put[-1] == "dataset.json" and put[-2] == "stats.npz"
    proxy.requested.clear()
    assert convert().splits["train"].samples == 8
    assert all(name.startswith(".writable") for method, name in proxy.requested if method == "PUT")


@pytest.mark.parametrize("url", ["file://{}/far/set", "memory://uploads/set"])
def test_any_url_that_is_written_to_will_do(convert, wanted, tmp_path, url):
    url = url.format(tmp_path)
    convert(url)
    out = target(url)
    assert {name: out.cat(name) for name in out.list()} == wanted
    convert(url)


def test_parts_give_the_same_files(convert, at_url, wanted, proxy, images, tmp_path):
    out = target(f"s3://{proxy.bucket}/set")
    for number in (2, 1):
        line = upload_part(images, out, OPTIONS, Part(number, 2), tmp_path / "cache")
        assert line.startswith(f"part {number}/2: {4 - number} shards at {out}; when all 2 are written, the same")
        assert not [*(tmp_path / "cache" / "uploads").iterdir()] and "dataset.json" not in at_url()
    proxy.requested.clear()
    convert()
    assert at_url() == wanted and ("PUT", "train-000002.tar") not in proxy.requested
    assert upload_part(images, out, OPTIONS, Part(1, 2), tmp_path / "cache") == f"{out} is complete already"


def close(handler):
    handler.close_connection = True


def cut_off(handler):
    handler.rfile.read(int(handler.headers["Content-Length"]) // 2)
    handler.close_connection = True


def overloaded(handler):
    handler.rfile.read(int(handler.headers["Content-Length"]))
    handler.send_error(503)


def slow(handler):
    time.sleep(0.3)
    handler.pass_on()


def lose(handler):
    """Answers that all went well, and keeps nothing."""
    handler.rfile.read(int(handler.headers["Content-Length"]))
    handler.send_response(200)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def test_an_upload_that_fails_is_tried_again_then_reported_and_continued(convert, at_url, wanted, s3, proxy):
    faults = {
        "train-000000.tar": close,
        "train-000001.tar": cut_off,
        "train-000002.tar": overloaded,
        "val-000000.idx": lose,
        "val-000001.tar": slow,
    }
    for name, fault in faults.items():
        proxy.faults["PUT", name] = [1, fault]
    proxy.faults["PUT", "dataset.json"] = [FOREVER, close]
    message = rf"s3://{proxy.bucket}/set/dataset.json cannot be written, tried 3 times: .*same command continues"
    with pytest.raises(InputError, match=message):
        convert()
    assert at_url().keys() == {*wanted, *DONE, ".plan"} - {"dataset.json"}
    for name, fault in faults.items():
        assert proxy.requested.count(("PUT", name)) == (1 if fault is slow else 2), name
    proxy.requested.clear()
    proxy.faults.clear()
    elsewhere = at_url()[".train-000001.done"].replace(b"train-000001.tar", b"../train-0001.tar")
    for name, damaged in ((".train-000000.done", b'"no marker"'), (".train-000001.done", elsewhere)):
        s3.put_object(Bucket=proxy.bucket, Key=f"set/{name}", Body=damaged)
    convert()
    tars = {name for method, name in proxy.requested if method == "PUT" and name.endswith(".tar")}
    assert tars == {"train-000000.tar", "train-000001.tar"}
    assert at_url() == wanted


def forbid(handler):
    handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    content = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    handler.send_response(403)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


@pytest.mark.parametrize("method, done", [("PUT", "written"), ("POST", "cleared")])
def test_what_may_not_be_written_is_said_before_any_work(convert, proxy, tmp_path, method, done):
    tried = f".writable-{os.uname().nodename}-{os.getpid()}"
    proxy.faults[method, tried if method == "PUT" else proxy.bucket] = [FOREVER, forbid]
    message = rf"cannot be {done} \(Access Denied\): give credentials that allow it in the environment"
    with pytest.raises(InputError, match=message):
        convert(root=tmp_path / "not looked at")


def test_a_bucket_that_is_not_there_is_said_before_any_work(convert, tmp_path):
    with pytest.raises(InputError, match=r"s3://none/set/\.writable.* cannot be written: there is no such bucket"):
        convert("s3://none/set", tmp_path / "not looked at")


def test_without_credentials_it_is_one_line(convert, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"cannot be written \(Unable to locate credentials\): give credentials that"):
        convert()


def test_a_web_server_is_refused(tmp_path):
    with pytest.raises(InputError, match="https://host/set cannot be written to: http"):
        target("https://host/set")


def test_another_data_set_is_refused_and_left_as_it_is(convert, at_url, wanted, s3, proxy):
    s3.put_object(Bucket=proxy.bucket, Key="set/train-000000.tar", Body=b"another's")
    with pytest.raises(InputError, match="holds parts of another data set: choose another --out or empty it"):
        convert()
    assert at_url() == {"train-000000.tar": b"another's"}
    s3.delete_object(Bucket=proxy.bucket, Key="set/train-000000.tar")
    convert()
    with pytest.raises(InputError, match=r"holds another data set \(other images or options\)"):
        convert(options=ConvertOptions(shard_size=12_000, seed=1))
    assert at_url() == wanted


def test_an_unfinished_one_of_other_options_is_refused_until_the_url_is_emptied(convert, at_url, wanted, s3, proxy):
    proxy.faults["PUT", "val-000000.tar"] = [FOREVER, close]
    with pytest.raises(InputError, match="cannot be written, tried 3 times"):
        convert(options=ConvertOptions(shard_size=16_000))
    with pytest.raises(InputError, match="holds parts of another data set"):
        convert()
    proxy.faults.clear()
    for name in at_url():
        s3.delete_object(Bucket=proxy.bucket, Key=f"set/{name}")
    convert()
    assert at_url() == wanted


def test_a_shard_that_vanished_is_written_again(convert, at_url, wanted, s3, proxy):
    def delete():
        s3.delete_object(Bucket=proxy.bucket, Key="set/val-000001.tar")

    with pytest.raises(InputError, match=r"val-000001.tar or its .idx is missing or has changed: the same command"):
        convert(meanwhile=delete)
    assert "dataset.json" not in at_url()
    convert()
    assert at_url() == wanted
    delete()
    with pytest.raises(InputError, match=r"val-000001.tar or its .idx is missing or has changed: empty s3://"):
        convert()


def test_a_strict_one_that_fails_leaves_nothing(convert, at_url, images, tmp_path):
    root = tmp_path / "images"
    for path in sorted(images.rglob("*.jpg")):
        (root / path.relative_to(images)).parent.mkdir(parents=True, exist_ok=True)
        os.link(path, root / path.relative_to(images))
    broken = path.with_name("broken.jpg")
    (root / broken.relative_to(images)).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"--strict: .*broken.jpg cannot be used"):
        convert(root=root, options=ConvertOptions(shard_size=12_000, strict=True))
    assert at_url() == {} and not [*(tmp_path / "cache" / "uploads").iterdir()]


def test_a_full_disk_is_said_and_what_was_uploaded_stays(convert, at_url, wanted, monkeypatch, tmp_path):
    written, sync = [], atomic.sync

    def full(file, *more):
        written.append(file)
        if len(written) == 12:
            raise OSError(28, "No space left on device")
        sync(file, *more)

    monkeypatch.setattr(atomic, "sync", full)
    with pytest.raises(InputError, match=r"cannot write .*/cache/uploads/.*: No space left on device; make room"):
        convert()
    monkeypatch.setattr(atomic, "sync", sync)
    assert ".train-000000.done" in at_url()
    convert()
    assert at_url() == wanted


def test_two_commands_on_one_machine_and_a_cache_that_cannot_be_are_one_line(convert, proxy, tmp_path):
    url = f"s3://{proxy.bucket}/set"
    with pytest.raises(InputError, match=rf"another command is writing to {url}: wait for it"):
        convert(meanwhile=convert)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--cache .*/file/uploads/.* cannot be written \(Not a directory\)"):
        convert(cache=tmp_path / "file")


CONVERT = """
import sys
from pathlib import Path
from shards.convert import ConvertOptions
from shards.upload import target, uploading
if __name__ == "__main__":
    root, url, cache = sys.argv[1:]
    with uploading(Path(root), target(url), ConvertOptions(shard_size=12_000, workers=1), Path(cache)):
        pass
"""


def test_a_killed_one_is_continued_on_another_machine(convert, at_url, wanted, proxy, images, tmp_path):
    killed = []

    def kill(handler):
        killed.append(os.killpg(running.pid, signal.SIGKILL))
        handler.close_connection = True

    proxy.faults["PUT", "train-000002.idx"] = [1, kill]
    script = tmp_path / "convert.py"
    script.write_text(CONVERT)
    command = [sys.executable, script, images, f"s3://{proxy.bucket}/set", tmp_path / "killed"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    assert running.wait(60) == -signal.SIGKILL and killed
    assert at_url().keys() == {".plan", *(f"train-00000{n}.{end}" for n in (0, 1) for end in ("tar", "idx"))} | {
        ".train-000000.done",
        ".train-000001.done",
        "train-000002.tar",
    }
    proxy.requested.clear()
    convert()
    assert at_url() == wanted
    again = {name for method, name in proxy.requested if method == "PUT"}
    assert "train-000002.tar" in again and "train-000001.tar" not in again
    convert(cache=tmp_path / "killed")  # nothing remains of the staging folder there, either
