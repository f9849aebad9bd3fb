"""Images in, tar shards out. Knows neither DALI nor torch."""
