"""Batches in, checkpoints and metrics out. Knows batches, not tars."""

import os

# What OpenMP reads as torch brings it, which every module of this package imports after this line: threads that wait
# for one another sleep. Left to itself, OpenMP has them spin for 20 ms, on cores that the last of them may need to get
# done: beside any other program training falls to a tenth (docs/speed.md). A user's own setting stays
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
