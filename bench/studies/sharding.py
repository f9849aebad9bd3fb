"""Speed and memory of `shard` beside what it can be compared with, in one run.

    keep             original bytes kept: our whole command, GNU tar and webdataset's ShardWriter
    size256          --size 256: our whole command, and a bare loop that decodes, scales and encodes and writes nothing
    libraries        microseconds an image of each library's decoding, scaling and encoding
    scaled_decoding  decoding at reduced size: what it costs in PSNR and how much time it saves
    memory           peak memory of converting N and 10 N images

Contestants take turns: in a round each runs once, and each round begins with another one. A ratio compares speeds of
the same round, ours over theirs, so above 1 we are faster.
"""

import io
import json
import multiprocessing
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import simplejpeg
from PIL import Image

from shards.atomic import atomic_write
from shards.convert import ConvertOptions, write_dataset
from shards.images import decode_jpeg, scaled_sides, scaled_square
from shards.jpeg import MAX_PIXELS, read_jpeg_header

SIZE = 256
SHARD = 256 * 2**20  # bytes, of ours and ShardWriter's tars alike
SHM = Path("/dev/shm")
FEW, SMALL_SHARD = 10_000, 2**20  # memory: images, and bytes of a tar, so that four processes have work even then
MEMORY_PROCESSES, MEMORY_LIMIT = 4, 1024  # MiB
SAMPLED_EVERY = 0.05  # seconds
IMAGENET = 1_281_167  # images of its train split
LIBRARIES = ("numpy", "pillow", "simplejpeg", "xxhash", "webdataset", "opencv", "pyturbojpeg")


# Contestants that run in an interpreter of their own: `python sharding.py NAME ARGUMENTS` prints one JSON object


def convert(source: str, out: str, processes: str, size: str, shard_size: str) -> dict:
    """Our command without its statistics step."""
    began = time.perf_counter()
    options = ConvertOptions(size=int(size) or None, shard_size=int(shard_size), workers=int(processes))
    dataset = write_dataset(Path(source), Path(out), options)
    return {"inside": time.perf_counter() - began, "pictures": dataset.split("train").samples}


def shardwriter(source: str, out: str) -> dict:
    import webdataset  # brings torch, which the others should not wait for

    began, count = time.perf_counter(), 0
    with webdataset.ShardWriter(f"{out}/train-%06d.tar", maxsize=SHARD, verbose=0) as sink:
        for label, folder in enumerate(sorted(Path(source, "train").iterdir())):
            for file in sorted(folder.iterdir()):
                about = {"wnid": folder.name, "file": file.name}
                sink.write({"__key__": file.stem, "jpg": file.read_bytes(), "cls": label, "json": about})
                count += 1
    seconds = time.perf_counter() - began
    return {"inside": seconds, "synced": seconds + synced(Path(out)), "pictures": count}


def bare(source: str, processes: str) -> dict:
    files, count = sorted(map(str, Path(source).glob("train/*/*"))), int(processes)
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        # Each counts from its own first image, so that the interpreters' start is not in it
        seconds = max(pool.map(bare_loop, [files[first::count] for first in range(count)]))
    return {"inside": seconds, "pictures": len(files)}


def decode(data: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(data, strict=False)


def encode(pixels: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(pixels, 95, "RGB", "444")


def square(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(scaled_square(Image.fromarray(pixels), SIZE))


def bare_loop(files: list[str]) -> float:
    began = time.perf_counter()
    for file in files:
        encode(square(decode(Path(file).read_bytes())))
    return time.perf_counter() - began


JOBS = {job.__name__: job for job in (convert, shardwriter, bare)}


def command(job: Callable, *arguments) -> list[str]:
    return [sys.executable, __file__, job.__name__, *map(str, arguments)]


def run(job: Callable, images: int, *arguments) -> dict:
    """What the job printed, and `whole`: its seconds with the interpreter's start. Raises ClickException when it fails
    or leaves an image out, for then the times would not compare."""
    began = time.perf_counter()
    ended = subprocess.run(command(job, *arguments), capture_output=True, text=True)
    whole = time.perf_counter() - began
    if ended.returncode:
        raise click.ClickException(f"{job.__name__} failed:\n{ended.stderr}")
    printed = json.loads(ended.stdout)
    if printed["pictures"] != images:
        raise click.ClickException(f"{job.__name__} took {printed['images']} images of {images}")
    return {"whole": whole, **printed}


# Measuring and showing


def alternate(contestants: list[Callable], rounds: int, place: Path) -> dict[str, list[float]]:
    """Every round's figures by name. A contestant gets an empty folder in `place` and returns its figures by name; a
    first round, which fills caches, is not counted."""
    figures = {}
    for number in range(-1, rounds):
        first = (number + 1) % len(contestants)
        for contestant in contestants[first:] + contestants[:first]:
            os.sync()  # or this one would share the disk with what an earlier one left to be written
            with tempfile.TemporaryDirectory(dir=place) as out:
                for name, figure in contestant(Path(out)).items():
                    figures.setdefault(name, []).extend([figure] if number >= 0 else [])
    return figures


def spread(values) -> dict:
    p10, median, p90 = np.percentile(values, (10, 50, 90)).tolist()
    return {"median": median, "p10": p10, "p90": p90, "raw": list(values)}


def show(name: str, measured: dict, unit: str = "") -> None:
    """A line of a table."""
    numbers = "".join(f"{measured[key]:>10.2f}" for key in ("median", "p10", "p90"))
    print(f"  {name:<34}{numbers} {unit}", flush=True)


def compare(figures: dict[str, list[float]], unit: str, pairs: tuple = (), images: int = 0) -> dict:
    """Shows and returns the figures, and the ratios of `pairs`: (ours, theirs, target). With `images`, which took
    those seconds, images per second too."""
    report = {"unit": unit, "figures": {name: spread(values) for name, values in figures.items()}, "ratios": {}}
    for name, measured in report["figures"].items():
        show(name, measured, unit + (f", {images / measured['median']:,.0f} img/s" if images else ""))
    for ours, theirs, target in pairs:
        ratio = spread([their / our for our, their in zip(figures[ours], figures[theirs], strict=True)])
        report["ratios"][f"{ours} / {theirs}"] = {**ratio, "target": target}
        show(f"{ours} / {theirs}", ratio, f"target {target}" if target else "")
    return report


def sample(images: Path) -> Iterator[tuple[str, bytes]]:
    """The sample's names and images."""
    with tarfile.open(images) as tar:
        for member in tar:
            if member.isfile():
                yield member.name, tar.extractfile(member).read()


def lay_down(images: Path, copies: int, root: Path) -> tuple[int, int]:
    """Class folders with every image `copies` times, warm. Returns how many files, and of how many bytes."""
    count = length = 0
    for name, data in sample(images):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(copies):
            path.with_name(f"{path.stem}_{number}{path.suffix}").write_bytes(data)
            count, length = count + 1, length + len(data)
    for path in root.glob("train/*/*"):
        path.read_bytes()
    return count, length


def synced(folder: Path) -> float:
    """Seconds to bring a folder's files to the disk."""
    began = time.perf_counter()
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - began


# The parts


def ours(setup: SimpleNamespace, count: int, root: Path, size: int) -> Callable:
    """Our command as a contestant; size 0 keeps the images' bytes."""

    def contestant(out: Path) -> dict:
        ran = run(convert, count, root, out, setup.processes, size, SHARD)
        return {"ours": ran["whole"], "ours, inside": ran["inside"]}

    return contestant


def keep(setup: SimpleNamespace) -> dict:
    root = setup.work / "tree"
    count, length = lay_down(setup.images, setup.copies, root)

    def tar(out: Path) -> dict:
        began = time.perf_counter()
        subprocess.run(["tar", "cf", out / "all.tar", "-C", root, "train"], check=True)
        seconds = time.perf_counter() - began
        return {"tar": seconds, "tar + fsync": seconds + synced(out)}

    def theirs(out: Path) -> dict:
        # The interpreter waits for torch, which is not ShardWriter's work: its loop alone is what we compare with
        ran = run(shardwriter, count, root, out)
        return {"ShardWriter": ran["inside"], "ShardWriter + fsync": ran["synced"]}

    report = {"files": count, "bytes": length, "processes": setup.processes, "places": {}}
    for name, place in (("disk", setup.work), ("tmpfs", SHM)):
        print(f"keep, to {name}: {count:,} files, {length / 1e6:,.0f} MB, {setup.processes} processes")
        if name == "tmpfs" and not room(2 * length):
            print("  left out: too little room")
            continue
        pairs = [("ours", rival, ">= 1.0, try for 1.5") for rival in ("tar", "tar + fsync")]
        pairs += [("ours", rival, ">= 5") for rival in ("ShardWriter", "ShardWriter + fsync")]
        with tempfile.TemporaryDirectory(prefix="sharding-", dir=place) as folder:
            seconds = alternate([ours(setup, count, root, 0), tar, theirs], setup.rounds, Path(folder))
        kind = subprocess.run(["stat", "-f", "-c", "%T", place], capture_output=True, text=True).stdout.strip()
        report["places"][name] = {"filesystem": kind, **compare(seconds, "s", pairs, count)}
    shutil.rmtree(root)
    return report


def room(length: int) -> bool:
    """Whether so many bytes fit into /dev/shm, and into memory."""
    if not SHM.is_dir():
        return False
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    available = next(int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:")
    return min(shutil.disk_usage(SHM).free, available) > length


def size256(setup: SimpleNamespace) -> dict:
    root = setup.work / "tree"
    count, length = lay_down(setup.images, setup.copies_256, root)

    def loop(_) -> dict:
        ran = run(bare, count, root, setup.processes)
        return {"bare loop": ran["inside"], "bare loop, whole": ran["whole"]}

    print(f"size256: {count:,} files, {length / 1e6:,.0f} MB, {setup.processes} processes")
    pairs = [("ours", rival, ">= 0.8, then 0.9") for rival in ("bare loop", "bare loop, whole")]
    seconds = alternate([ours(setup, count, root, SIZE), loop], setup.rounds, setup.work)
    compared = compare(seconds, "s", pairs, count)
    shutil.rmtree(root)
    return {"files": count, "bytes": length, "processes": setup.processes, **compared}


def whole_then_crop(pixels: np.ndarray, resample=Image.Resampling.BILINEAR) -> np.ndarray:
    image = Image.fromarray(pixels)
    width, height = scaled_sides(*image.size, SIZE)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return np.asarray(image.resize((width, height), resample).crop((left, top, left + SIZE, top + SIZE)))


def pillow_encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def choices() -> dict[str, dict[str, Callable | None]]:
    """What each library does in each step; None for one that is absent."""
    cv2 = turbo = None
    with suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)
    with suppress(ImportError, OSError, RuntimeError):  # it may find no libjpeg-turbo, or too old a one
        import turbojpeg

        turbo = turbojpeg.TurboJPEG()

    def opencv_decode(data: bytes) -> np.ndarray:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)

    def opencv_area(pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        cut = pixels[top : top + side, left : left + side]
        return cv2.resize(cut, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

    def opencv_encode(pixels: np.ndarray) -> np.ndarray:
        sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95, *sampling])[1]

    return {
        "decode": {
            "simplejpeg": decode,
            "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
            "OpenCV": cv2 and opencv_decode,
            "PyTurboJPEG": turbo and (lambda data: turbo.decode(data, pixel_format=turbojpeg.TJPF_RGB)),
        },
        "resize": {
            "Pillow, whole then crop": whole_then_crop,
            "Pillow, box": square,
            "OpenCV, INTER_AREA": cv2 and opencv_area,
        },
        "encode": {"simplejpeg": encode, "Pillow": pillow_encode, "OpenCV": cv2 and opencv_encode},
    }


def calls(name: str, function: Callable, items: list, unit: float) -> Callable:
    """A contestant: a call's mean time over the items, in units of which a second has so many."""

    def contestant(_) -> dict:
        began = time.perf_counter()
        for item in items:
            function(item)
        return {name: unit * (time.perf_counter() - began) / len(items)}

    return contestant


def libraries(setup: SimpleNamespace) -> dict:
    data = [image for _, image in sample(setup.images)]
    pixels = [decode(image) for image in data]
    inputs = {"decode": data, "resize": pixels, "encode": [square(image) for image in pixels]}
    report = {"pictures": len(data)}
    for step, functions in choices().items():
        print(f"libraries, {step}: {len(data)} images, one process")
        contestants = [calls(name, function, inputs[step], 1e6) for name, function in functions.items() if function]
        figures = alternate(contestants, setup.rounds, setup.work)
        absent = [name for name, function in functions.items() if not function]
        report[step] = {**compare(figures, "us an image"), "absent": absent}
        if absent:
            print(f"  absent: {'; '.join(absent)}")
    return report


def scaled_decoding(setup: SimpleNamespace) -> dict:
    def reduced(data: bytes) -> np.ndarray:
        return square(decode_jpeg(data, read_jpeg_header(data), SIZE, MAX_PIXELS))

    def full(data: bytes) -> np.ndarray:
        return square(decode(data))

    def is_reduced(data: bytes) -> bool:
        jpeg = read_jpeg_header(data)
        return decode_jpeg(data, jpeg, SIZE, MAX_PIXELS).shape[:2] != (jpeg.height, jpeg.width)

    data = [image for _, image in sample(setup.images) if read_jpeg_header(image).decodes_to_rgb]
    affected = [image for image in data if is_reduced(image)]
    report = {"pictures": len(data), "affected": len(affected)}
    print(f"scaled_decoding: {len(affected)} of {len(data)} images are decoded at reduced size")
    if not affected:
        return report
    wholes = [decode(image) for image in affected]
    stored = [reduced(image) for image in affected]
    triangle = [square(whole) for whole in wholes]
    lanczos = [whole_then_crop(whole, Image.Resampling.LANCZOS) for whole in wholes]
    report["psnr_db"] = {
        "reduced, to full + Lanczos": psnr(stored, lanczos),
        "reduced, to full + triangle": psnr(stored, triangle),
        "full + triangle, to full + Lanczos": psnr(triangle, lanczos),
    }
    for name, values in report["psnr_db"].items():
        print(f"  {name:<34}{values['median']:>10.2f} dB, least {values['min']:.2f}")
    contestants = [
        calls(f"{function.__name__}, {where}", function, items, 1e3)
        for where, items in (("affected", affected), ("all", data))
        for function in (full, reduced)
    ]
    figures = alternate(contestants, setup.rounds, setup.work)
    pairs = [(f"reduced, {where}", f"full, {where}", "") for where in ("affected", "all")]
    report["decode_and_scale"] = compare(figures, "ms an image", pairs)
    for ours, theirs, _ in pairs:
        saved = 1 - np.median(figures[ours]) / np.median(figures[theirs])
        print(f"  {ours}: {saved:.1%} of the time saved")
    return report


def psnr(images: list[np.ndarray], references: list[np.ndarray]) -> dict:
    """Over all three channels together, dB."""
    pairs = zip(images, references, strict=True)
    errors = [np.mean((image.astype(float) - reference) ** 2) for image, reference in pairs]
    values = [float(10 * np.log10(255**2 / max(error, 1e-9))) for error in errors]
    return {"median": float(np.median(values)), "min": min(values), "raw": values}


def memory(setup: SimpleNamespace) -> dict:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    data = simplejpeg.encode_jpeg(pixels, 75)
    roots = {count: setup.work / f"tree-{count}" for count in (FEW, 10 * FEW)}
    for count, root in roots.items():
        for number in range(count):
            path = root / "train" / f"class{number % 20:02d}" / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def measured(out: Path, count: int) -> dict:
        high, shared = peak(command(convert, roots[count], out, MEMORY_PROCESSES, 0, SMALL_SHARD))
        return {f"{count} files, VmHWM": high, f"{count} files, PSS": shared}

    print(
        f"memory: {MEMORY_PROCESSES} processes and their parent, target <= {MEMORY_LIMIT} MiB for any number of files"
    )
    contestants = [lambda out, count=count: measured(out, count) for count in roots]
    figures = alternate(contestants, setup.rounds, setup.work)
    report = {"processes": MEMORY_PROCESSES, "limit_mib": MEMORY_LIMIT, **compare(figures, "MiB")}
    few, many = (np.median(figures[f"{count} files, PSS"]) for count in roots)
    grown = float(many - few) / (9 * FEW)
    report["grown_bytes_a_image"] = grown * 2**20
    report["imagenet_mib"] = float(many) + grown * (IMAGENET - 10 * FEW)
    print(f"  grown by {grown * 2**20:.0f} bytes of PSS an image more; if it goes on so, ", end="")
    print(f"{report['imagenet_mib']:,.0f} MiB for ImageNet's {IMAGENET:,}")
    for root in roots.values():
        shutil.rmtree(root)
    return report


def peak(words: list[str]) -> tuple[float, float]:
    """A command's peak memory with all its descendants, MiB: the sum of each process's highest resident size, which
    counts shared pages once a process and so is the upper bound, and the highest sum of proportional sizes."""
    highest, most = {}, 0
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        now = 0
        for pid in family(process.pid):
            high, shared = (kib(pid, *where) for where in (("status", "VmHWM:"), ("smaps_rollup", "Pss:")))
            highest[pid], now = max(high, highest.get(pid, 0)), now + shared
        most = max(most, now)
        time.sleep(SAMPLED_EVERY)
    complaint = process.communicate()[1].decode()
    if process.returncode:
        raise click.ClickException(f"{shlex.join(words)} failed:\n{complaint}")
    if len(highest) <= MEMORY_PROCESSES:
        raise click.ClickException(f"only {len(highest)} processes of {MEMORY_PROCESSES} and their parent were seen")
    return sum(highest.values()) / 1024, most / 1024


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:  # the thread has ended since
                continue
    return found


def kib(pid: int, file: str, name: str) -> int:
    """A line of a process's file in /proc; 0 when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def machine() -> dict:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    # Backwards, so that of two installations the one that is imported stays
    installed = [found for found in reversed(list(distributions())) if found.name.lower().startswith(LIBRARIES)]
    versions = {found.name: found.version for found in installed}
    tar = subprocess.run(["tar", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    return {
        "cpu": next(names, platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {**versions, "tar": tar},
    }


PARTS = {part.__name__: part for part in (keep, size256, libraries, scaled_decoding, memory)}
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
FOUND = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option("--images", type=FOUND, required=True, help="A tar of train/WNID/*.JPEG.")
@click.option("--copies", type=click.IntRange(1), default=30, show_default=True, help="Of each image, in keep.")
@click.option("--copies-256", type=click.IntRange(1), default=5, show_default=True, help="Of each, in size256.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="That are counted.")
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True, help="In keep and size256.")
@click.option("--work", type=FOLDER, required=True, help="A folder on the disk to measure; it is left as it was.")
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="A part, instead of all; may be repeated.")
@click.option("--json", "json_path", type=FILE, help="Where the figures go.")
def main(work, only, json_path, **options):
    if json_path and not json_path.absolute().parent.is_dir():
        raise click.ClickException(f"--json {json_path}: there is no such folder; make it first")
    told = shlex.join(["python", *sys.argv])
    report = {"schema": 1, "command": told, "rounds": options["rounds"], "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="sharding-", dir=work.absolute()) as folder:
        setup = SimpleNamespace(**options, work=Path(folder))
        for name in only or PARTS:
            report[name] = PARTS[name](setup)
    if json_path:
        with atomic_write(json_path) as file:
            file.write(json.dumps(report, indent=1).encode() + b"\n")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in JOBS:
        print(json.dumps(JOBS[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
