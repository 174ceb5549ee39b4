"""Exact log-likelihoods of images and videos, with their baselines."""
