"""torchvision, on any build of torch.

Its wheels on PyPI are for CUDA builds of torch. On a CPU build their compiled operators (of detection, which nothing
here uses) do not load, and the import ends with the first two that are asked for: here they are declared, and empty.
"""

import pytest
import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
if torch.version.cuda is None:
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed: it is not compared with")
