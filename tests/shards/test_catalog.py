"""Keys of samples are unique in their split, and of plain characters."""

from shards.catalog import Catalog
from shards.sources.base import SourceImage


def test_keys_are_unique_and_plain(tmp_path):
    def of(*files):
        catalog = Catalog(tmp_path / f"{len(list(tmp_path.iterdir()))}")
        classes = sorted({file.split("/")[0] for file in files})
        images = [SourceImage(file, 0, 0, file, classes.index(file.split("/")[0])) for file in files]
        catalog.add("val", [SourceImage("x", 0, 0, "x", 0)], classes)  # another split's keys are its own
        catalog.add("train", images, classes)
        return [image.key for image in catalog.images(catalog.lengths("train")[0])]

    assert of("n01/n01_1.JPEG", "n02/n02_1.JPEG") == ["n01_1", "n02_1"]
    assert of("cat/x.jpg", "dog/1.jpg") == ["x", "1"]
    assert of("cat/1.jpg", "dog/1.jpg") == ["cat_1", "dog_1"]
    assert of("cat/1.jpg", "cat/1.png") == ["cat_1_jpg", "cat_1_png"]
    assert of("cat/a b.jpg", "cat/a.b.jpg", "cat/a_b.jpg") == ["000000000", "000000001", "000000002"]
    assert of("cat/" + "x" * 200 + ".jpg") == ["000000000"]
