"""Training runs as pages to read: `report`."""
