"""Three molecules of up to five atoms in the plane, of three kinds, and what their flows should compute."""

import jax
import jax.numpy as jnp
import numpy as np

CLASSES = np.array([[0, 1, 2, 1, 0], [2, 2, 0, 1, -1], [1, 0, 0, 2, 2]], np.int32)
LENGTHS = np.array([5, 4, 2], np.int32)
SHAPE = (3, 5, 1, 2)


def compiled_forward(flow):
    """The flow's forward pass of x, classes and lengths."""
    return jax.jit(lambda x, classes, lengths: flow.forward(x, classes, lengths=lengths))


def dense_log_determinants(flow, x):
    """The log-determinant of the Jacobian of each molecule x of `SHAPE`, by all of its entries, [3]."""

    def noise(one, classes):
        return flow.forward(one.reshape(1, *SHAPE[1:]), classes[None]).z.reshape(-1)

    jacobians = jax.jit(jax.vmap(jax.jacfwd(noise)))(x.reshape(3, -1), CLASSES)
    return np.asarray(jnp.linalg.slogdet(jacobians)[1])
