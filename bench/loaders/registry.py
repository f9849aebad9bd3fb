"""All loaders that are compared with ours, in the order of the table."""

from bench.loaders import with_dataloader, with_webdataset
from bench.loaders.with_ffcv import FFCV
from bench.loaders.with_grain import GRAIN
from bench.loaders.with_litdata import LITDATA
from bench.loaders.with_mosaicml import MOSAICML
from bench.loaders.with_spdl import SPDL
from bench.loaders.with_tf_data import TF_DATA

OTHERS = (
    with_dataloader.PILLOW,
    with_dataloader.SIMPLEJPEG,
    with_dataloader.TORCHVISION,
    with_dataloader.NVJPEG,
    with_webdataset.PILLOW,
    with_webdataset.SIMPLEJPEG,
    with_webdataset.OPENCV,
    FFCV,
    SPDL,
    TF_DATA,
    LITDATA,
    MOSAICML,
    GRAIN,
)
