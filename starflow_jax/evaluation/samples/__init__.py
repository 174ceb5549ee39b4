"""The quality of generated images: FID, KID, Inception Score, precision and recall, CLIP score."""
