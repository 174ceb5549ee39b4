"""The convolutional autoencoder with a Gaussian posterior (Stable Diffusion's VAE)."""
