"""Features of images: the networks that compute them, and statistics of them, from which metrics are computed."""
