"""Transformer autoregressive normalizing flows: TARFlow, STARFlow and STARFlow-V in JAX.

The picture of the package::

    train    pixels -> autoencoder.encode -> latent -> + noise -> flow.forward -> z, logdets -> loss -> update
    sample   caption -> text encoder -> noise z -> deep block inverse -> shallow blocks inverse -> decode
    score    pixels -> encode -> flow.forward -> log p(x)

Imports run one way:
``kernels <- nn <- flows <- solvers <- {training, sampling, evaluation} <- cli``.
"""

from pathlib import Path

# In a checkout `kernels/` and `experiments/` lie beside this folder, where setup.cfg maps them in from;
# in an installed wheel they lie inside it. Searching the parent folder too, only in a checkout, makes
# `import starflow_jax.kernels` mean the same in both.
_package_folder = Path(__file__).resolve().parent
if not (_package_folder / "kernels").is_dir():
    __path__.append(str(_package_folder.parent))

__version__ = "0.1.0"
