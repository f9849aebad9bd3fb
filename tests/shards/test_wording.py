"""Numbers have the right form of their noun."""

from shards.wording import counted


def test_one_is_singular_and_the_rest_are_plural():
    assert [counted(number, "shard") for number in (0, 1, 2, 1000)] == [
        "0 shards",
        "1 shard",
        "2 shards",
        "1,000 shards",
    ]
    assert [counted(2, noun) for noun in ("class", "batch", "index", "image")] == [
        "2 classes",
        "2 batches",
        "2 indexes",
        "2 images",
    ]
    assert counted(["one"], "process") == "1 process" and counted([], "process") == "0 processes"
