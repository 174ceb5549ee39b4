"""The parallel Jacobi update: the operation, its reference in plain jnp, and its kernels for TPUs and GPUs."""
