"""Meshes of devices, and how arrays are laid out on them.

- `mesh`: the mesh that a configuration asks for.
- `layout`: shardings of activations and parameters.
- `rules`: the table from parameter paths to mesh axes.
"""

from starflow_jax.sharding.layout import Layout, tree_layout
from starflow_jax.sharding.mesh import check_fit, make_layout

__all__ = ["Layout", "check_fit", "make_layout", "tree_layout"]
