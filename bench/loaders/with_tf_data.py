"""tf.data over a TFRecord file, with TensorFlow's own decoding and transforms."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from bench.loaders.base import ImageSet, LoaderSpec
from pipeline.geometry import CROP, MARGIN, SIZE


def batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    import tensorflow as tf  # optional

    once = images._replace(repeats=1)

    def write(folder: Path) -> None:
        with tf.io.TFRecordWriter(str(folder / "images.tfrecord")) as writer:
            for file in once.files:
                writer.write(Path(file).read_bytes())

    def transform(jpeg: Any) -> Any:
        offset = tf.random.uniform((2,), 0, MARGIN + 1, tf.int32)
        shape = tf.image.extract_jpeg_shape(jpeg)[:2]
        if images.dataset.size == SIZE:
            crop = tf.io.decode_and_crop_jpeg(jpeg, tf.concat([offset, [CROP, CROP]], 0), channels=3)
        else:
            # `shards.images.scaled_sides`, on tensors
            sides = (2 * shape * SIZE + tf.reduce_min(shape)) // (2 * tf.reduce_min(shape))
            scaled = tf.image.resize(tf.io.decode_jpeg(jpeg, channels=3), sides, antialias=True)
            crop = tf.slice(scaled, tf.concat([(sides - SIZE) // 2 + offset, [0]], 0), (CROP, CROP, 3))
            crop = tf.cast(tf.round(crop), tf.uint8)
        return tf.image.random_flip_left_right(crop)

    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    records = tf.data.TFRecordDataset(str(once.converted("tfrecord", write) / "images.tfrecord"))
    shuffled = records.repeat().shuffle(1000).map(transform, num_parallel_calls=tf.data.AUTOTUNE)
    loader = shuffled.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(options)
    return (from_dlpack(tf.experimental.dlpack.to_dlpack(batch)) for batch in loader)


TF_DATA = LoaderSpec("tf.data", "tensorflow-cpu", ("tensorflow",), batches)
