"""Frozen pretrained models around the flow: autoencoders and text encoders."""
