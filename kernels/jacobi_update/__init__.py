"""The parallel Jacobi update: the operation, its specification in plain jnp, and its kernels."""
