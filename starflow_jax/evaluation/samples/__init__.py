"""The quality of generated images.

- `features`: feature networks, and statistics of their features.
- `metrics`: FID, KID, Inception Score, precision and recall, CLIP score; one registered file each.
- `sample_measurement`: the measurement that `sample_quality_request` describes.
"""
