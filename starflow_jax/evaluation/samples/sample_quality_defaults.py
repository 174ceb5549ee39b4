"""Default values of a sample-quality request, which the command line shows without importing JAX."""

BITS = "bpd"  # the metric that is computed of held-out images and not of samples
FOLDER = "quality"  # folder of the results, in the folder of the run
NUM_SAMPLES, CHUNK, BATCH = 50_000, 1024, 64
