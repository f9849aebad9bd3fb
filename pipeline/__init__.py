"""Tar shards in, device tensors out. Knows DALI and not the model."""
