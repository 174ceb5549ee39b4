"""Metrics of generated images, one file a metric, registered in `METRICS`."""
