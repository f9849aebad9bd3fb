"""A trained model put to use: its answers to images of one's own, and its export to what other programs read."""

import trainer  # noqa: F401  # prepares OpenMP, before any module here imports torch
