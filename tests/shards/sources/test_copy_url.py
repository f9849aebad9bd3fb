"""A source at a URL becomes the data set that a local copy of it becomes."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from shards import convert
from shards.convert import ConvertOptions, write_dataset
from shards.errors import InputError
from shards.sources import copy_url
from shards.sources.copy_url import RECORD, source_at
from shards.storage import Storage
from shards.upload import target, uploading
from tests.conftest import PROJECT
from tests.support.image_kinds import encoded, noise
from tests.support.source_layouts import LAYOUTS, write

pytest.importorskip("aiohttp", reason="aiohttp is not installed: URLs are not tested")
pytestmark = pytest.mark.usefixtures("quick_retries", "in_this_process")
OPTIONS = ConvertOptions(workers=1)
FOREVER = 10**6


def tree(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def files(folder):
    """A data set's files, without what is remembered of the URL beside it."""
    return {name: content for name, content in tree(folder).items() if name != RECORD}


@pytest.fixture
def upload(proxy, s3):
    """`upload(folder, name)`: puts the folder's files into the proxy's bucket, and returns their URL."""

    def put(folder, name="photos"):
        for key, content in tree(folder).items():
            s3.put_object(Bucket=proxy.bucket, Key=f"{name}/{key}", Body=content)
        return f"s3://{proxy.bucket}/{name}"

    return put


@pytest.fixture
def photos(tmp_path):
    """Two class folders of three images each."""
    root = tmp_path / "photos"
    for number in range(6):
        write(root / ("cats" if number % 2 else "dogs") / f"{number}.jpg", encoded(noise(size=(32 + number, 32))))
    return root


@pytest.fixture
def wanted(photos, tmp_path):
    """The files of the data set that they become."""
    write_dataset(photos, tmp_path / "wanted", OPTIONS)
    return files(tmp_path / "wanted")


def fetched(proxy):
    """The names of the files that were asked for."""
    return {name for method, name in proxy.requested if method == "GET" and name != proxy.bucket}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_bytes_of_a_local_copy(layout, tiny_samples, upload, proxy, tmp_path, capsys):
    root, out = tmp_path / "near" / "imagenet", tmp_path / "set"
    LAYOUTS[layout][0](root, tiny_samples)
    write(root / "more-train-001.tar.gz", b"beside the images")  # named in dataset.json, and not read
    if layout.startswith("archives"):
        write(root / "ILSVRC2012_img_test_v10102019.tar", b"of no use")
    write(root / "other set" / ".plan", "of an unfinished conversion")
    write(root / "other set" / "train-000000.tar", b"of an unfinished conversion")
    write(root / ".DS_Store", b"hidden")
    write_dataset(root, tmp_path / "wanted", OPTIONS)
    notices = [line for line in capsys.readouterr().err.splitlines() if line.startswith("notice")]
    url = upload(root, "imagenet")
    write_dataset(source_at(url), out, OPTIONS)
    errors = capsys.readouterr().err
    assert files(out) == files(tmp_path / "wanted")
    assert [line.replace(url, str(root)) for line in errors.splitlines() if line.startswith("notice")] == notices
    assert "not taken: more-train-001.tar.gz" in errors and f"of {url} to copy to {out}/.source/imagenet; it" in errors
    passed_over = {"more-train-001.tar.gz", "ILSVRC2012_img_test_v10102019.tar", ".plan", "train-000000.tar"}
    passed_over |= {".DS_Store", "ILSVRC2012_test_00000001.JPEG"}
    assert fetched(proxy) == {name.rpartition("/")[2] for name in tree(root)} - passed_over


def test_the_same_command_fetches_nothing_again_and_other_files_are_refused(photos, upload, proxy, s3, tmp_path):
    out, url = tmp_path / "set", upload(photos)
    dataset = write_dataset(source_at(url), out, OPTIONS)
    before = tree(out)
    proxy.requested.clear()
    assert write_dataset(source_at(url), out, OPTIONS) == dataset
    with pytest.raises(InputError, match=r"holds another data set"):
        write_dataset(source_at(url), out, ConvertOptions(workers=1, seed=1))
    s3.put_object(Bucket=proxy.bucket, Key="photos/cats/7.jpg", Body=encoded(noise(size=(40, 32))))
    with pytest.raises(InputError, match=r"holds another data set"):
        write_dataset(source_at(url), out, OPTIONS)
    assert not fetched(proxy) and tree(out) == before


def test_from_one_url_to_another_beside_the_images(photos, wanted, upload, proxy, s3, tmp_path):
    write(photos / "shards" / "old" / ".plan", b"of an unfinished conversion")
    write(photos / "shards" / "old" / "train-000000.tar", b"of an unfinished conversion")
    url = upload(photos)

    def convert():
        with uploading(source_at(url), target(f"{url}/shards/set"), OPTIONS, tmp_path / "cache") as dataset:
            (dataset.root / "stats.npz").write_bytes(b"what the command computes")
        assert not any((tmp_path / "cache" / "uploads").iterdir())
        return dataset

    convert()
    there = Storage(f"{url}/shards/set", "")
    assert {name: there.cat(name) for name in there.list() if name not in (RECORD, "stats.npz")} == wanted
    proxy.requested.clear()
    assert convert().splits["train"].samples == 6
    assert "1.jpg" not in fetched(proxy)


@pytest.mark.parametrize("out", ["", "/cats", "/cats/deep/set", "/train/set"])
def test_shards_do_not_go_among_the_images_at_a_url(photos, upload, tmp_path, out):
    url = upload(photos)
    with (
        pytest.raises(InputError, match=r"--out .* lies among the images of --imagenet-root s3://"),
        uploading(source_at(url), target(url + out), OPTIONS, tmp_path / "cache"),
    ):
        pass


def busy(handler):
    handler.send_response(503)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def cut_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "3000")
    handler.end_headers()
    handler.wfile.write(b"half")
    handler.close_connection = True


def too_short(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "4")
    handler.end_headers()
    handler.wfile.write(b"half")


def slow(handler):
    time.sleep(0.3)
    handler.pass_on()


def forbid(handler):
    handler.send_response(403)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def vanished(handler):
    handler.send_response(404)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@pytest.mark.parametrize("fault", [busy, cut_off, too_short, slow])
def test_what_passes_is_tried_again(fault, photos, wanted, upload, proxy, tmp_path):
    proxy.faults["GET", "3.jpg"] = [2, fault]
    proxy.faults["GET", proxy.bucket] = [1, fault if fault in (busy, slow) else busy]
    write_dataset(source_at(upload(photos)), tmp_path / "set", OPTIONS)
    assert files(tmp_path / "set") == wanted


@pytest.mark.parametrize(
    "fault, message",
    [
        (forbid, r"3\.jpg cannot be read .*give credentials that allow it in the environment"),
        (vanished, r"3\.jpg is missing: it was listed a moment ago: run the same command again"),
        (too_short, r"3\.jpg cannot be fetched, tried 3 times: .*4 bytes were received, and the list of files says"),
    ],
)
def test_what_stays_away_is_named_and_the_same_command_continues(
    fault, message, photos, wanted, upload, proxy, tmp_path
):
    out, url = tmp_path / "set", upload(photos)
    proxy.faults["GET", "3.jpg"] = [FOREVER, fault]
    with pytest.raises(InputError, match=rf"{url}/cats/{message}"):
        write_dataset(source_at(url), out, OPTIONS)
    copied = {name.rpartition("/")[2] for name, content in tree(out / ".source").items() if content}
    assert [*os.listdir(out)] == [".source"] and "3.jpg" not in copied and not list(out.rglob(".*.tmp-*"))
    proxy.faults.clear()
    proxy.requested.clear()
    write_dataset(source_at(url), out, OPTIONS)
    assert fetched(proxy) == {path.name for path in photos.glob("*/*")} - copied
    assert files(out) == wanted


def test_what_has_changed_since_is_fetched_again(photos, upload, proxy, s3, tmp_path):
    out, url = tmp_path / "set", upload(photos)
    proxy.faults["GET", "5.jpg"] = [1, forbid]
    with pytest.raises(InputError, match=r"5\.jpg cannot be read"):
        write_dataset(source_at(url), out, OPTIONS)
    changed = bytearray((photos / "cats" / "1.jpg").read_bytes())
    changed[-30] ^= 1  # of the same length
    (photos / "cats" / "1.jpg").write_bytes(changed)
    (photos / "dogs" / "2.jpg").unlink()
    s3.put_object(Bucket=proxy.bucket, Key="photos/cats/1.jpg", Body=bytes(changed))
    s3.delete_object(Bucket=proxy.bucket, Key="photos/dogs/2.jpg")
    write_dataset(photos, tmp_path / "wanted", OPTIONS)
    write_dataset(source_at(url), out, OPTIONS)
    assert files(out) == files(tmp_path / "wanted")


CONVERT = """
import sys
from pathlib import Path
from shards.convert import ConvertOptions, write_dataset
from shards.sources import copy_url
from shards.sources.copy_url import source_at
if __name__ == "__main__":
    write_dataset(source_at(sys.argv[1]), Path(sys.argv[2]), ConvertOptions(workers=1))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_one_that_is_killed_or_interrupted_is_continued(number, photos, wanted, upload, proxy, tmp_path):
    out, url = tmp_path / "set", upload(photos)

    def end(handler):
        while not any(path.stat().st_size for path in (out / ".source").rglob("*.jpg")):
            time.sleep(0.01)
        os.kill(running.pid, number)
        running.wait(20)
        handler.close_connection = True

    proxy.faults["GET", "3.jpg"] = [1, end]
    (tmp_path / "convert.py").write_text(CONVERT)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, tmp_path / "convert.py", url, out]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == -number and (number == signal.SIGKILL or "KeyboardInterrupt" in errors)
    proxy.requested.clear()
    write_dataset(source_at(url), out, OPTIONS)
    assert files(out) == wanted and "3.jpg" in fetched(proxy) and len(fetched(proxy)) < 6


def test_images_added_after_the_first_shard_are_refused_in_words(photos, upload, proxy, s3, tmp_path, monkeypatch):
    out, url = tmp_path / "set", upload(photos)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_splits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(source_at(url), out, OPTIONS)
    s3.put_object(Bucket=proxy.bucket, Key="photos/cats/7.jpg", Body=encoded(noise(size=(40, 32))))
    with pytest.raises(InputError, match=rf"the files at {url}, or the options, have changed since"):
        write_dataset(source_at(url), out, OPTIONS)


@pytest.fixture
def memory():
    """An empty folder in fsspec's memory."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def test_a_folder_of_no_known_layout_is_refused_before_anything_is_fetched(upload, proxy, tmp_path):
    write(tmp_path / "root" / "train" / "a.jpg", b"in no class folder")
    write(tmp_path / "root" / "data" / "a.bin", b"what is that?")
    url = upload(tmp_path / "root" / "train", "set/train")
    with pytest.raises(InputError, match=rf"--imagenet-root {url} .*may be a split itself: then give {url[:-6]}\)"):
        write_dataset(source_at(url), tmp_path / "out", OPTIONS)
    assert not fetched(proxy) and not (tmp_path / "out").exists()


def test_a_disk_without_the_room_is_refused_before_anything_is_fetched(photos, upload, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(copy_url.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 4 * 4096))
    url = upload(photos)
    with pytest.raises(InputError, match=r"\.source/photos has room for 0\.0 MB, and s3://.* needs 0\.0 MB: choose"):
        write_dataset(source_at(url), tmp_path / "out", OPTIONS)
    assert not fetched(proxy)


def test_what_a_source_says_is_said_of_the_url(upload, tmp_path):
    write(tmp_path / "set" / "train-0.tar", b"no tar")
    write(tmp_path / "empty" / "train-0.tar", bytes(1024))
    write(tmp_path / "photos" / "a" / "1.jpg", b"no image")
    write(tmp_path / "photos" / "b" / "1.jpg", b"no image")
    url = upload(tmp_path / "set", "set")
    with pytest.raises(InputError, match=rf"^{url}/train-0.tar"):
        write_dataset(source_at(url), tmp_path / "out", OPTIONS)
    with pytest.raises(InputError, match=r"^s3://[^ ]*/empty: the train split is empty"):
        write_dataset(source_at(upload(tmp_path / "empty", "empty")), tmp_path / "none", OPTIONS)
    with pytest.raises(
        InputError, match=r"--label-key is for parquet files and WebDataset tars, and s3://.*/photos holds"
    ):
        write_dataset(
            source_at(upload(tmp_path / "photos")), tmp_path / "other", ConvertOptions(workers=1, label_key="x")
        )


def test_what_stands_for_a_folder_is_no_file(photos, wanted, upload, proxy, s3, tmp_path):
    for key in ("photos/", "photos/cats/", "photos/dogs"):
        s3.put_object(Bucket=proxy.bucket, Key=key, Body=b"")
    write_dataset(source_at(upload(photos)), tmp_path / "set", OPTIONS)
    assert files(tmp_path / "set") == wanted


@pytest.mark.parametrize(
    "key, message",
    [
        ("train/../../x.jpg", "a file on a disk cannot be called"),
        ("train/a/./x.jpg", "a file on a disk cannot be called"),
        ("train//x.jpg", "a file on a disk cannot be called"),
        ("/x.jpg", "a file on a disk cannot be called"),
        (f"train/a/{'x' * 201}.jpg", "a file on a disk cannot be called"),
        ("train/a/1.jpg/2.jpg", r"photos/train/a/1\.jpg is a file and a folder, which a disk cannot hold: rename one"),
    ],
)
def test_names_that_a_disk_cannot_hold_are_refused(key, message, proxy, s3, tmp_path):
    s3.put_object(Bucket=proxy.bucket, Key="photos/train/a/1.jpg", Body=b"1")
    s3.put_object(Bucket=proxy.bucket, Key=f"photos/{key}", Body=b"1")
    with pytest.raises(InputError, match=message):
        write_dataset(source_at(f"s3://{proxy.bucket}/photos"), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists() and not fetched(proxy)


def test_a_web_server_that_lists_its_folders_is_a_source(photos, serve, tmp_path):
    (photos / "cats").rename(photos / "big cats")
    (photos / "dogs" / "0.jpg").rename(photos / "dogs" / "100%20 #1?.jpg")
    write_dataset(photos, tmp_path / "wanted", OPTIONS)
    server = serve(tmp_path)
    write_dataset(source_at(f"{server.url}photos"), tmp_path / "set", OPTIONS)
    assert files(tmp_path / "set") == files(tmp_path / "wanted")


def page(*links):
    """A web page with these links, in place of a list of files."""

    def answer(handler):
        content = "".join(f'<a href="{link}">x</a>' for link in links).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def test_a_web_server_that_lists_nothing_is_one_line(serve, tmp_path):
    server = serve(tmp_path)
    for links in ((), ("?C=N;O=D", "../", "../../etc/", "/elsewhere/x.tar", "https://other.example/x.tar", "#top")):
        server.faults["photos"] = [FOREVER, page(*links)]
        with pytest.raises(InputError, match=r"no files are listed there; a web server has to list its folders: copy"):
            write_dataset(source_at(f"{server.url}photos"), tmp_path / "out", OPTIONS)
    server.faults["photos"] = [FOREVER, page("..%2f..%2fx.tar")]
    with pytest.raises(InputError, match="a file on a disk cannot be called"):
        write_dataset(source_at(f"{server.url}photos"), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "url, message",
    [
        ("file:///data/images", "is a folder of this machine: give it as /data/images"),
        ("s3://bucket/a/..", "write it without the dots"),
        ("s3://key:sesame@bucket/images", "holds credentials"),
        ("https://host/images?signature=sesame", "without parameters"),
    ],
)
def test_urls_that_are_refused(url, message, run_here, tmp_path):
    done = run_here("shard", "--imagenet-root", url, "--out", tmp_path / "out", check=False)
    assert done.returncode == 1 and message in done.stderr and "sesame" not in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_the_command_takes_a_url_and_its_parts_do_not(photos, memory, run_here, tmp_path):
    for name, content in tree(photos).items():
        memory.pipe(f"/far/photos/{name}", content)
    out = tmp_path / "out"
    done = run_here("shard", "memory://far/photos", "--out", out, "--workers", 1, "--part", "1/2", check=False)
    assert done.returncode == 1 and "each part would copy memory://far/photos: copy it to a folder once" in done.stderr
    assert (
        "train: 6 samples in 1 shard" in run_here("shard", "memory://far/photos", "--out", out, "--workers", 1).stdout
    )
    run_here("shard", photos, "--out", tmp_path / "near")
    assert files(out) == files(tmp_path / "near") and "stats.npz" in files(out)
