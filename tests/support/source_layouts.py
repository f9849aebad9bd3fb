"""The layouts in which people keep ImageNet, each written as a small faithful copy of the same images."""

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# WNID: its words in ImageNet's lists, and its id in ILSVRC2012, which is not in the order of the WNIDs
SYNSETS = {
    "n01440764": ("tench, Tinca tinca", 5),
    "n01443537": ("goldfish, Carassius auratus", 8),
    "n01484850": ("great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias", 3),
    "n01491361": ("tiger shark, Galeocerdo cuvieri", 6),
    "n01494475": ("hammerhead, hammerhead shark", 1),
    "n01496331": ("electric ray, crampfish, numbfish, torpedo", 4),
    "n01498041": ("stingray", 7),
    "n01514668": ("cock", 2),
}
CLASSES = tuple(SYNSETS)
WORDS = {wnid: words for wnid, (words, _) in SYNSETS.items()}
NAMES = tuple(WORDS.values())
TRAIN, VAL = 40, 12  # images


class Sample(NamedTuple):
    """An image: its split, class, file name without suffix, and bytes."""

    split: str
    wnid: str
    stem: str
    jpeg: bytes

    @property
    def label(self) -> int:
        return CLASSES.index(self.wnid)


def samples(jpegs: list[bytes]) -> list[Sample]:
    """TRAIN + VAL images with names as ImageNet has them."""
    wnids = [CLASSES[number % len(CLASSES)] for number in range(TRAIN)]
    train = [Sample("train", wnid, f"{wnid}_{10026 - 97 * number}", jpegs[number]) for number, wnid in enumerate(wnids)]
    wnids = [CLASSES[number * 5 % len(CLASSES)] for number in range(VAL)]
    val = [
        Sample("val", wnid, f"ILSVRC2012_val_{number:08d}", jpeg)
        for number, (wnid, jpeg) in enumerate(zip(wnids, jpegs[TRAIN:], strict=True), 1)
    ]
    return train + val


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def make_tar(files: dict[str, bytes], format=tarfile.USTAR_FORMAT) -> bytes:
    """A tar of these files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=format) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def in_split(images: list[Sample], split: str) -> list[Sample]:
    """The samples of one split."""
    return [sample for sample in images if sample.split == split]


def folders(root: Path, images: list[Sample]) -> None:
    """train/WNID/*.JPEG, val/WNID/*.JPEG."""
    for sample in images:
        write(root / sample.split / sample.wnid / f"{sample.stem}.JPEG", sample.jpeg)


def archives(root: Path, images: list[Sample]) -> None:
    """The official tars and the devkit."""
    official_tars(root, images)
    write(root / "ILSVRC2012_devkit_t12.tar.gz", devkit(images))


def archives_with_mapping(root: Path, images: list[Sample]) -> None:
    """The official tars and a plain list of the validation images' class numbers."""
    official_tars(root, images)
    write(root / "val.txt", mapping(images))


def official_tars(root: Path, images: list[Sample]) -> None:
    """A tar of one tar for each class, unsorted, and a flat one."""
    by_class: dict[str, dict[str, bytes]] = {wnid: {} for wnid in reversed(CLASSES)}
    for sample in in_split(images, "train"):
        by_class[sample.wnid][f"{sample.stem}.JPEG"] = sample.jpeg
    inner = {f"{wnid}.tar": make_tar(files, tarfile.GNU_FORMAT) for wnid, files in by_class.items()}
    write(root / "ILSVRC2012_img_train.tar", make_tar(inner, tarfile.GNU_FORMAT))
    flat = {f"{sample.stem}.JPEG": sample.jpeg for sample in in_split(images, "val")}
    write(root / "ILSVRC2012_img_val.tar", make_tar(flat, tarfile.GNU_FORMAT))


def mapping(images: list[Sample]) -> str:
    return "".join(f"{sample.stem}.JPEG {sample.label}\n" for sample in in_split(images, "val"))


def devkit(images: list[Sample], without: str = "", truth: str | None = None) -> bytes:
    """The devkit, without the file `without`; `truth` replaces its list of ids."""
    ids = [SYNSETS[sample.wnid][1] for sample in in_split(images, "val")]
    truth = truth if truth is not None else "".join(f"{identity}\n" for identity in ids)
    files = {
        "readme.txt": b"ImageNet Large Scale Visual Recognition Challenge 2012",
        "data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        "data/meta.mat": meta(),
    }
    files = {
        f"ILSVRC2012_devkit_t12/{name}": data for name, data in files.items() if not without or without not in name
    }
    return gzip.compress(make_tar(files), 1)


def meta() -> bytes:
    """meta.mat: a column of structures, the classes by their ids and the synsets above them behind."""
    from scipy.io import savemat

    rows = [(identity, wnid, words, []) for wnid, (words, identity) in SYNSETS.items()]
    rows += [(9, "n01482330", "shark", [3, 6, 1]), (10, "n00001740", "entity", [9, *range(1, 9)])]
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    synsets = np.zeros((len(rows), 1), [(name, object) for name in (*fields, "num_train_images")])
    for row, (identity, wnid, words, children) in zip(synsets[:, 0], sorted(rows), strict=True):
        about = (float(identity), wnid, words, f"what is {words}", float(len(children)), np.array(children, float))
        for name, value in zip(synsets.dtype.names, (*about, float(bool(children)), 1300.0), strict=True):
            row[name] = value
    content = io.BytesIO()
    savemat(content, {"synsets": synsets}, do_compression=True)
    return content.getvalue()


def kaggle(root: Path, images: list[Sample]) -> None:
    """Kaggle's tree, with the test images of its contest, which have no labels."""
    data = root / "ILSVRC" / "Data" / "CLS-LOC"
    for sample in images:
        folder = data / "train" / sample.wnid if sample.split == "train" else data / "val"
        write(folder / f"{sample.stem}.JPEG", sample.jpeg)
    write(data / "test" / "ILSVRC2012_test_00000001.JPEG", images[0].jpeg)
    write(root / "ILSVRC" / "ImageSets" / "CLS-LOC" / "train_cls.txt", "n01440764/n01440764_10026 1\n")
    write(root / "LOC_synset_mapping.txt", "".join(f"{wnid} {words}\n" for wnid, words in WORDS.items()))
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["ImageId", "PredictionString"])
    for sample in reversed(in_split(images, "val")):
        writer.writerow([sample.stem, f"{sample.wnid} 85 1 499 272 {sample.wnid} 10 20 30 40 "])
    write(root / "LOC_val_solution.csv", table.getvalue())


def parquet(root: Path, images: list[Sample]) -> None:
    """Hugging Face's: three files for training and two for validation, of small row groups; the test split's labels
    are -1."""
    for split, name, count in (("train", "train", 3), ("val", "validation", 2)):
        group = in_split(images, split)
        for number in range(count):
            part = group[number * len(group) // count : (number + 1) * len(group) // count]
            rows = [(sample.jpeg, f"{sample.stem}_{sample.wnid}.JPEG", sample.label) for sample in part]
            write_parquet(root / "data" / f"{name}-{number:05d}-of-{count:05d}.parquet", rows)
    write_parquet(
        root / "data" / "test-00000-of-00001.parquet", [(images[0].jpeg, "ILSVRC2012_test_00000001.JPEG", -1)]
    )


def write_parquet(path: Path, rows: list[tuple], names: tuple[str, ...] | None = NAMES, **options) -> None:
    """Rows of (bytes, path, label), with the schema that Hugging Face's `datasets` writes."""
    import pyarrow
    from pyarrow import parquet

    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    schema = pyarrow.schema({"image": image, "label": pyarrow.int64()})
    if names:
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    table = pyarrow.Table.from_arrays(
        [
            pyarrow.array([data and {"bytes": data, "path": name} for data, name, _ in rows], image),
            pyarrow.array([label for *_, label in rows], pyarrow.int64()),
        ],
        schema=schema,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, **{"row_group_size": 5, **options})


def webdataset(root: Path, images: list[Sample]) -> None:
    """The public copy of 1000 classes: imagenet1k-train-0000.tar, imagenet1k-validation-00.tar and so on."""
    for split, form, count in (
        ("train", "imagenet1k-train-{:04d}.tar", 3),
        ("val", "imagenet1k-validation-{:02d}.tar", 2),
    ):
        for number in range(count):
            files = {}
            for sample in in_split(images, split)[number::count]:
                files.update(members(sample))
            write(root / form.format(number), make_tar(files, tarfile.PAX_FORMAT))


def members(sample: Sample) -> dict[str, bytes]:
    """A sample's files as the public copy has them."""
    width, height = Image.open(io.BytesIO(sample.jpeg)).size
    filename = f"{sample.wnid}/{sample.stem}.JPEG"
    about = {"filename": filename, "height": height, "label": sample.label, "width": width}
    return {
        f"{sample.stem}.cls": b"%d" % sample.label,
        f"{sample.stem}.jpg": sample.jpeg,
        f"{sample.stem}.json": json.dumps(about).encode(),
    }


# Each layout's writer, its name for `--source`, and whether it has words for the classes
LAYOUTS = {
    "folders": (folders, "folders", False),
    "archives": (archives, "archives", True),
    "archives with val.txt": (archives_with_mapping, "archives", False),
    "kaggle": (kaggle, "kaggle", True),
    "parquet": (parquet, "parquet", True),
    "webdataset": (webdataset, "webdataset", False),
}
