"""Batches in, checkpoints and metrics out. Knows batches, not tars."""
