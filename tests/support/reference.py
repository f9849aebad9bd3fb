"""The paper's preprocessing in plain NumPy and Pillow, step by step as sections 2 and 4.1 describe it."""

import io

import numpy as np
from PIL import Image, ImageOps


def patch(jpeg: bytes) -> np.ndarray:
    """Shorter side scaled to 256, the central 256 x 256 cut out: 256 x 256 x 3 uint8."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(jpeg))).convert("RGB")
    shorter = min(image.size)
    width, height = (int(np.floor(side * 256 / shorter + 0.5)) for side in image.size)
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - 256) // 2, (width - 256) // 2
    return scaled[top : top + 256, left : left + 256]


def reference_input(jpeg: bytes, mean_crop: np.ndarray, y=16, x=16, flip=0, color_shift=(0, 0, 0)) -> np.ndarray:
    """A 224 crop at (y, x), mirrored or not, minus the mean, plus the color shift: 3 x 224 x 224 float32."""
    crop = patch(jpeg)[int(y) : int(y) + 224, int(x) : int(x) + 224].astype(np.float32)
    if flip:
        crop = crop[:, ::-1]
    return crop.transpose(2, 0, 1) - mean_crop + np.asarray(color_shift, np.float32)[:, None, None]
