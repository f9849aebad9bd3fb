"""The sizes of images, patches and crops (paper, sections 2 and 4.1), in pixels."""

SIZE = 256  # shorter side after scaling, and side of the central patch (section 2)
CROP = 224  # side of what the model sees (section 4.1)
MARGIN = SIZE - CROP  # crop offsets are 0..MARGIN, both ends included
CENTER = MARGIN // 2

# Section 4.1: "the four corner patches and the center patch as well as their horizontal reflections": (y, x) offsets
FIVE_CROPS = ((0, 0), (0, MARGIN), (MARGIN, 0), (MARGIN, MARGIN), (CENTER, CENTER))
