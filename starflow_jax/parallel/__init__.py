"""Many devices: the mesh, where arrays lie on it, and what a layout costs.

- `mesh`: the mesh that a configuration asks for.
- `layout`: named places of activations, shardings of parameters.
- `rules`: the one table of parameter paths.
- `hlo`, `collectives`: what a compiled program moves between devices.
"""

from starflow_jax.parallel.layout import Layout, layout_of
from starflow_jax.parallel.mesh import check_fit, make_layout

__all__ = ["Layout", "check_fit", "layout_of", "make_layout"]
