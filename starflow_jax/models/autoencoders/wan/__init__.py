"""The causal video autoencoders of Wan2.1 and Wan2.2."""
