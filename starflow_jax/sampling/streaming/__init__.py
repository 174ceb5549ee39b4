"""Videos frame by frame, each yielded as soon as it is final."""
