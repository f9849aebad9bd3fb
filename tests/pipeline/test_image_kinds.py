"""What is said of a kind of image, that DALI decodes it or not, is what DALI does with it."""

import numpy as np
import pytest
import simplejpeg

from pipeline import graph
from shards.errors import Unreadable
from shards.images import prepare, read_header
from tests.support.image_kinds import ADOPTED


def decoded(data: bytes) -> np.ndarray | None:
    """By DALI, None when it cannot."""
    pipe = graph.probe_graph({"device": "cpu"}, batch_size=1, num_threads=1, device_id=None)
    pipe.build()
    pipe.feed_input("encoded", [np.frombuffer(data, np.uint8)])
    try:
        return np.asarray(pipe.run()[0].at(0)).astype(float)
    except RuntimeError:
        return None


def stored(data: bytes) -> np.ndarray | None:
    """What `shard` makes of it, None when it skips it."""
    try:
        return simplejpeg.decode_jpeg(prepare(data, None, 100).jpeg).astype(float)
    except Unreadable:
        return None


@pytest.mark.parametrize("kind", ADOPTED)
def test_dali_sees_what_shard_stores_unless_the_header_is_said_to_be_a_problem(kind):
    data, expected = ADOPTED[kind]
    try:
        problem = read_header(data).problem
    except Unreadable as unreadable:
        problem = str(unreadable)
    assert (problem is None) == (expected is None) and (problem or "").startswith(expected or "")
    ours, theirs = stored(data), decoded(data)
    alike = ours is not None and theirs is not None and ours.shape == theirs.shape and abs(ours - theirs).mean() < 3
    assert alike == (problem is None)
