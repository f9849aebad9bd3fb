"""All measuring: `throughput-bench`, and studies of single parts."""

import trainer  # noqa: F401  # prepares OpenMP, before any module here imports torch
