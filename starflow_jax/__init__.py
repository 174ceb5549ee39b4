"""Transformer autoregressive normalizing flows in JAX: TARFlow, STARFlow (images) and STARFlow-V (video).

A flow maps data to Gaussian noise by an invertible network, so one model gives exact log-likelihoods and samples::

    import starflow_jax as sf

    run = sf.from_pretrained("runs/digits")
    samples = sf.sample(run, num=16, label=7)
    log_p = sf.log_prob(run, samples)
    x, log_q = sf.distribution(run).sample_and_log_prob(jax.random.key(0), (16,))

`PUBLIC` lists the public interface. Its names are imported from their modules on first use, so that
`import starflow_jax` imports neither JAX nor NumPy. CONTRIBUTING.md states how the packages import each other.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from starflow_jax.core.deferred_names import deferred_names

__version__ = "0.2.0"

# The public interface: every name, and the module that defines or exports it. docs/reference/api.md documents each.
PUBLIC = {
    # trained models
    "from_pretrained": "starflow_jax.api.model_loading",
    "Run": "starflow_jax.sampling.loaded_run",
    "sample": "starflow_jax.api.model_sampling",
    "SampleRequest": "starflow_jax.sampling.sample_requests",
    "StarFlowPipeline": "starflow_jax.hub.pipeline",
    "log_prob": "starflow_jax.api.model_likelihood",
    "bits_per_dim": "starflow_jax.api.model_likelihood",
    "draw_gallery": "starflow_jax.reports.gallery",
    "write_gallery": "starflow_jax.reports.gallery",
    "compress": "starflow_jax.compression.image_codec",
    "decompress": "starflow_jax.compression.image_codec",
    "distribution": "starflow_jax.api.distributions",
    "Distribution": "starflow_jax.api.flow_distribution",
    "condition": "starflow_jax.api.model_condition",
    "adapted": "starflow_jax.api.adapted",
    "restore": "starflow_jax.editing.restoration",
    "ChainOptions": "starflow_jax.editing.posterior_sampling",
    "Mask": "starflow_jax.editing.operators",
    "BlockMeans": "starflow_jax.editing.operators",
    "ChannelMean": "starflow_jax.editing.operators",
    "Identity": "starflow_jax.editing.operators",
    "interpolate": "starflow_jax.editing.latent_edits",
    "attribute_direction": "starflow_jax.editing.latent_edits",
    "change_condition": "starflow_jax.editing.latent_edits",
    "load_run": "starflow_jax.training",
    # sampling of given densities
    "targets": "starflow_jax",
    # training
    "train": "starflow_jax.training",
    "TrainRequest": "starflow_jax.training",
    "load_config": "starflow_jax.core.config",
    "ExperimentConfig": "starflow_jax.core.config",
    "FlowConfig": "starflow_jax.core.config",
    "DataConfig": "starflow_jax.core.config",
    "TrainConfig": "starflow_jax.core.config",
    "SampleConfig": "starflow_jax.core.config",
    # flows
    "Flow": "starflow_jax.flows",
    "score_denoise": "starflow_jax.flows",
    "learned_denoise": "starflow_jax.flows",
    "Guidance": "starflow_jax.flows",
    "LinearGuidance": "starflow_jax.flows",
    # inversion
    "inverse": "starflow_jax.solvers",
    "Sequential": "starflow_jax.solvers",
    "Jacobi": "starflow_jax.solvers",
    "SlidingJacobi": "starflow_jax.solvers",
    "Secant": "starflow_jax.solvers",
    "PerBlock": "starflow_jax.solvers",
    "gs_jacobi": "starflow_jax.solvers",
    "selective": "starflow_jax.solvers",
    "auto": "starflow_jax.solvers",
    "SlidingWindow": "starflow_jax.solvers",
}

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from starflow_jax import targets as targets
    from starflow_jax.api.adapted import adapted as adapted
    from starflow_jax.api.distributions import distribution as distribution
    from starflow_jax.api.flow_distribution import Distribution as Distribution
    from starflow_jax.api.model_condition import condition as condition
    from starflow_jax.api.model_likelihood import bits_per_dim as bits_per_dim
    from starflow_jax.api.model_likelihood import log_prob as log_prob
    from starflow_jax.api.model_loading import from_pretrained as from_pretrained
    from starflow_jax.api.model_sampling import sample as sample
    from starflow_jax.compression.image_codec import compress as compress
    from starflow_jax.compression.image_codec import decompress as decompress
    from starflow_jax.core.config import DataConfig as DataConfig
    from starflow_jax.core.config import ExperimentConfig as ExperimentConfig
    from starflow_jax.core.config import FlowConfig as FlowConfig
    from starflow_jax.core.config import SampleConfig as SampleConfig
    from starflow_jax.core.config import TrainConfig as TrainConfig
    from starflow_jax.core.config import load_config as load_config
    from starflow_jax.editing.latent_edits import attribute_direction as attribute_direction
    from starflow_jax.editing.latent_edits import change_condition as change_condition
    from starflow_jax.editing.latent_edits import interpolate as interpolate
    from starflow_jax.editing.operators import BlockMeans as BlockMeans
    from starflow_jax.editing.operators import ChannelMean as ChannelMean
    from starflow_jax.editing.operators import Identity as Identity
    from starflow_jax.editing.operators import Mask as Mask
    from starflow_jax.editing.posterior_sampling import ChainOptions as ChainOptions
    from starflow_jax.editing.restoration import restore as restore
    from starflow_jax.flows import Flow as Flow
    from starflow_jax.flows import Guidance as Guidance
    from starflow_jax.flows import LinearGuidance as LinearGuidance
    from starflow_jax.flows import learned_denoise as learned_denoise
    from starflow_jax.flows import score_denoise as score_denoise
    from starflow_jax.hub.pipeline import StarFlowPipeline as StarFlowPipeline
    from starflow_jax.reports.gallery import draw_gallery as draw_gallery
    from starflow_jax.reports.gallery import write_gallery as write_gallery
    from starflow_jax.sampling.loaded_run import Run as Run
    from starflow_jax.sampling.sample_requests import SampleRequest as SampleRequest
    from starflow_jax.solvers import Jacobi as Jacobi
    from starflow_jax.solvers import PerBlock as PerBlock
    from starflow_jax.solvers import Secant as Secant
    from starflow_jax.solvers import Sequential as Sequential
    from starflow_jax.solvers import SlidingJacobi as SlidingJacobi
    from starflow_jax.solvers import SlidingWindow as SlidingWindow
    from starflow_jax.solvers import auto as auto
    from starflow_jax.solvers import gs_jacobi as gs_jacobi
    from starflow_jax.solvers import inverse as inverse
    from starflow_jax.solvers import selective as selective
    from starflow_jax.training import TrainRequest as TrainRequest
    from starflow_jax.training import load_run as load_run
    from starflow_jax.training import train as train

# In a checkout, `kernels/` and `experiments/` lie beside this folder, and setup.cfg maps them to subpackages; in an
# installed wheel they lie inside it. Only in a checkout, the parent folder is searched too, so that
# `import starflow_jax.kernels` works in both.
_package_folder = Path(__file__).resolve().parent
if not (_package_folder / "kernels").is_dir():
    __path__.append(str(_package_folder.parent))


__getattr__ = deferred_names(__name__, PUBLIC)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
