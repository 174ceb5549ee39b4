"""Every recorded operation, run here and compared array by array."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from inversions import check_inversion
from recordings import Check, Folder, channels_first, channels_last, condition, relative_error

from starflow_jax.core.config import TrainConfig
from starflow_jax.data import bits_per_dim
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.flows import (
    Guidance,
    denoise_in_chunks,
    learned_denoise,
    objective,
    score_denoise,
    standard_normal_log_prob,
)
from starflow_jax.flows.parameters import split
from starflow_jax.nn.rope import Rotation, angles, axial_positions, line_positions
from starflow_jax.porting import to_torch
from starflow_jax.training.step.optimizer import apply_updates, init_optimizer
from starflow_jax.training.step.train_step import loss_and_gradients, update_prior_variance

FORWARD_BAR = 1e-5
GRADIENT_BAR = 1e-4
# Adam divides by the root of second moments: from the second step on, rounding in float32 is carried along and grows.
LATER_STEP_BAR = 1e-4


@jax.jit
def forward(flow, x, cond, guidance):
    return flow.forward(x, cond, guidance=guidance)


def check_forward(folder: Folder, name: str, experiment: dict[str, Any]) -> list[Check]:
    flow = folder.flow
    x = channels_last(folder.input(experiment, "x"))
    y = condition(folder.input(experiment, "y"))
    weight = experiment.get("args", {}).get("guidance")
    guidance = None
    if weight:  # recorded with a doubled batch, of which both halves get the guided parameters
        half = x.shape[0] // 2
        assert np.array_equal(x[:half], x[half:])
        x, y, guidance = x[:half], y[:half], Guidance(weight, y[half:])
    out = forward(flow, x, y, guidance)

    def batch(array):
        return np.concatenate([array, array]) if weight else np.asarray(array)

    ours = {}
    if folder.is_tarflow:
        sequence = [batch(t).reshape(x.shape[0], -1, t.shape[-1]) for t in out.tokens]
        ours["z"] = sequence[-1]
        ours |= {f"outputs_{i}": t for i, t in enumerate(sequence[1:])}
        # Recorded as the mean over tokens and channels.
        ours["logdets"] = batch(out.logdet) / sequence[0][0].size
    else:
        ours["z"] = channels_first(batch(out.z))
        ours["y_out"] = out.text
        ours |= {f"outputs_{i}": batch(t) for i, t in enumerate(out.tokens)}
        ours |= {f"logdet_{i}": batch(d) for i, d in enumerate(out.logdets)}
    if not weight:
        terms = jax.jit(objective)(out)
        ours |= {"loss": terms.loss, "loss_z": terms.loss_z, "loss_logdet": terms.loss_logdet}
        weights = folder.meta["scalars"].get(f"{name}/weights")
        if weights is not None:
            ours["loss_weighted"] = objective(out, weights=weights).loss
    return compare(folder, name, ours, FORWARD_BAR)


def compare(folder: Folder, name: str, ours: dict[str, Any], bar: float) -> list[Check]:
    """Every array that is recorded under this name."""
    found = {f"{name}/{key}": value for key, value in ours.items() if f"{name}/{key}" in folder.arrays}
    return [Check(key, relative_error(value, folder.arrays[key]), bar) for key, value in found.items()]


def check_denoiser(folder: Folder, name: str, experiment: dict[str, Any]) -> list[Check]:
    x = channels_last(folder.input(experiment, "x"))
    y = folder.input(experiment, "y")
    pred = jax.jit(lambda flow, x, y: flow.denoiser(x, y))(folder.flow, x, y)
    checks = compare(folder, name, {"pred": channels_first(pred)}, FORWARD_BAR)
    mask = folder.arrays.get("denoiser_mask")
    if mask is not None and x.ndim == 5:
        checks.append(check_mask(folder, mask, y.shape[1]))
    return checks


def check_mask(folder: Folder, mask: np.ndarray, text: int) -> Check:
    """Recorded for a video of its own length, on the grid of the folder's other videos."""
    from starflow_jax.flows.order import Grid

    shape = channels_last(folder.arrays["forward/x"]).shape
    grid = Grid.from_shape(folder.flow.config, shape)
    grid = grid.with_frames((mask.shape[0] - text) // grid.frame)
    slots = jnp.arange(mask.shape[0])
    ours = folder.flow.denoiser.visibility(grid, text).mask(slots[:, None], slots[None, :])
    return Check("denoiser_mask", relative_error(ours, mask), 0.0)


def check_apply_denoising(folder: Folder, name: str, experiment: dict[str, Any]) -> list[Check]:
    arguments = experiment["args"]
    x = jnp.asarray(channels_last(folder.input(experiment, "x")))
    y = folder.input(experiment, "y")
    sigma = arguments["sigma_curr"]
    full, partial = map(float, arguments["sigma_next"])
    denoise = jax.jit(learned_denoise)
    ours = {
        "x": channels_first(denoise(folder.flow, x, y, sigma, full)),
        "x_sigma_next": channels_first(denoise(folder.flow, x, y, sigma, partial)),
    }
    return compare(folder, name, ours, FORWARD_BAR)


def check_self_denoise(folder: Folder, name: str, experiment: dict[str, Any]) -> list[Check]:
    x = channels_last(folder.input(experiment, "x"))
    y = condition(folder.input(experiment, "y"))
    ours = jax.jit(score_denoise)(folder.flow, x, y, experiment["args"]["noise_std"])
    return compare(folder, name, {"x": channels_first(ours)}, GRADIENT_BAR)


def check_process_denoising(folder: Folder, name: str, experiment: dict[str, Any]) -> list[Check]:
    arguments = experiment["args"]
    x = channels_last(folder.input(experiment, "x"))
    y = folder.input(experiment, "y")
    flow, sigma = folder.flow, arguments["noise_std"]

    @jax.jit
    def run(flow, x):
        by_score = arguments.get("disable_learnable_denoiser")
        denoise = score_denoise if by_score else learned_denoise
        return denoise_in_chunks(
            lambda piece, start: denoise(flow, piece, y, sigma),
            x,
            chunk=arguments["local_attn_window"],
            overlap=arguments["denoiser_window"],
            feed_denoised=True,  # as the original does
        )

    bar = GRADIENT_BAR if arguments.get("disable_learnable_denoiser") else FORWARD_BAR
    return compare(folder, name, {"x": channels_first(run(flow, x))}, bar)


def check_bits_per_dim(folder: Folder, name: str, experiment: dict[str, Any]) -> list[Check]:
    image, u = (folder.input(experiment, key) for key in ("img", "u"))
    flow = folder.flow
    levels = np.round((image + 1.0) * 127.5).astype(np.uint8)
    x = np.asarray(dequantise(levels, u, 256))
    out = forward(flow, channels_last(x), None, None)
    dims = x[0].size
    log_prob = standard_normal_log_prob(out.z)
    ours = {
        "x": x,
        "prior_log_p": log_prob - dims * np.log(128.0),
        "bpd": bits_per_dim(log_prob + out.logdet, dims, 256),
    }
    mean = folder.meta["scalars"][f"{name}/mean"]
    error = relative_error(np.mean(ours["bpd"]), np.asarray(mean))
    return [*compare(folder, name, ours, FORWARD_BAR), Check(f"{name}/mean", error, FORWARD_BAR)]


def check_update_prior(folder: Folder) -> list[Check]:
    """TARFlow's running prior variance, recorded without an experiment of its own."""
    arrays = folder.arrays
    after = update_prior_variance(
        jnp.asarray(arrays["update_prior/var_before"]), jnp.mean(arrays["update_prior/z"] ** 2, axis=0)
    )
    return [Check("update_prior/var_after", relative_error(after, arrays["update_prior/var_after"]), FORWARD_BAR)]


def check_training(folder: Folder, name: str, experiment: dict[str, Any]) -> list[Check]:
    """Losses and gradients of the first step, losses of every step, and parameters where they are recorded."""
    arguments, arrays = experiment["args"], folder.arrays
    x = jnp.asarray(channels_last(folder.input(experiment, "x")))
    y = condition(folder.input(experiment, "y"))
    definition, params = split(folder.flow)
    config = TrainConfig(
        steps=1,
        batch_size=1,
        lr=arguments["lr"],
        betas=tuple(arguments["betas"]),
        weight_decay=arguments["weight_decay"],
        denoiser_betas=tuple(arguments.get("denoiser_betas") or (0.9, 0.999)),
        grad_clip=arguments.get("grad_clip") or 0.0,
        skip_after=None,
    )

    @jax.jit
    def step(params, opt_state):
        losses, grads, x_grad = loss_and_gradients(
            definition,
            params,
            jnp.asarray(x),
            y,
            weights=arguments.get("weights"),
            latent_norm=arguments.get("latent_norm_regularization") or 0.0,
            noise_std=arguments.get("noise_std") or 0.0,
        )
        if folder.flow.config.scale == "unit":
            variance = update_prior_variance(params["prior_variance"], losses.latent_square)
            params = {**params, "prior_variance": variance}
        params, opt_state, report = apply_updates(
            config,
            params,
            opt_state,
            grads,
            step=0,
            lr=arguments["lr"],
            denoiser_lr=arguments.get("denoiser_lr") or 0.0,
        )
        return params, opt_state, losses, grads, x_grad, report

    checks: list[Check] = []
    scalars = folder.meta["scalars"]

    def scalar(key, value, bar):
        if key in scalars:
            checks.append(Check(key, relative_error(value, np.asarray(scalars[key])), bar))

    opt_state = init_optimizer(config, params)
    count = max(int(key[4:].split("/")[0]) for key in scalars if key.startswith("step"))
    for number in range(1, count + 1):
        before, bar = params, FORWARD_BAR if number == 1 else LATER_STEP_BAR
        params, opt_state, losses, grads, x_grad, report = step(params, opt_state)
        for term in ("loss", "loss_z", "loss_logdet", "loss_denoiser"):
            scalar(f"step{number}/{term}", getattr(losses, term), bar)
        scalar(f"step{number}/grad_norm", report.grad_norm, bar)
        scalar(f"step{number}/denoiser_grad_norm", report.denoiser_grad_norm, bar)
        if number == 1:
            checks += check_gradients(folder, grads, channels_first(x_grad))
            checks += check_score(folder, before, x, y, channels_first(x_grad), arguments)
        checks += check_parameters(folder, number, to_torch(params), arguments["lr"])
        if f"var_{number}" in arrays:
            error = relative_error(params["prior_variance"], arrays[f"var_{number}"])
            checks.append(Check(f"var_{number}", error, bar))
    return checks


def check_gradients(folder: Folder, grads, x_grad: np.ndarray) -> list[Check]:
    arrays = folder.arrays
    ours = {f"grad/{key}": value for key, value in to_torch(grads).items() if f"grad/{key}" in arrays}
    ours |= {"step1/x_grad": x_grad} if "step1/x_grad" in arrays else {}
    return [Check(key, relative_error(value, arrays[key]), GRADIENT_BAR) for key, value in ours.items()]


def check_score(folder: Folder, params, x, y, x_grad, arguments) -> list[Check]:
    """The target and the first prediction of flow-score matching."""
    arrays = folder.arrays
    if "step1/score" not in arrays:
        return []
    score = x_grad * x.size * arguments["noise_std"]
    pred = channels_first(jax.jit(lambda flow, x, y: flow.denoiser(x, y))(folder.flow, x, y))
    return [
        Check("step1/score", relative_error(score, arrays["step1/score"]), GRADIENT_BAR),
        Check("step1/pred", relative_error(pred, arrays["step1/pred"]), FORWARD_BAR),
    ]


def check_parameters(folder: Folder, number: int, tensors: dict[str, np.ndarray], lr: float) -> list[Check]:
    checks = []
    for key, recorded in folder.arrays.items():
        prefix, _, tensor = key.partition("/")
        if prefix != f"params_{number}":
            continue
        ours = tensors[tensor]
        note = ""
        if tensor.endswith("qkv.bias"):
            # A key's bias has no gradient: Adam turns its rounding noise into steps of either sign.
            block = ours.shape[0] // 3
            rows = slice(block, 2 * block)
            assert np.max(np.abs(ours[rows] - recorded[rows])) <= 2 * lr * number
            ours, recorded = (np.delete(a, rows, axis=0) for a in (ours, recorded))
            note = "without the key's third"
        checks.append(Check(key, relative_error(ours, recorded), GRADIENT_BAR, note))
    return checks


def check_rope(folder: Folder, name: str, experiment: dict[str, Any]) -> list[Check]:
    pos, head_dim = experiment["args"]["pos"], 2 * experiment["args"]["rope"]["dim"]
    rows, columns, text = pos["h"], pos["w"], pos["txt_size"]
    if pos["mode"] == "1d":
        positions = line_positions(text + rows * columns)
    else:
        positions = axial_positions(
            rows,
            columns,
            span=pos["pt_seq_len"] or (rows * columns) ** 0.5,
            axes=int(pos["mode"][0]),
            text=text,
            frames=max(pos["duplicate"], 1),
        )
    table = angles(positions, head_dim)
    arrays = folder.arrays
    checks = [
        Check(f"pos_{name}", relative_error(positions, arrays[f"pos_{name}"]), FORWARD_BAR),
        Check(f"freqs_{name}", relative_error(np.repeat(table, 2, axis=1), arrays[f"freqs_{name}"]), FORWARD_BAR),
    ]
    for key, adjacent in (("out", True), ("hf", False)):
        recorded = arrays.get(f"apply_{key}_{name}")
        if recorded is not None:
            rotated = Rotation(jnp.cos(table), jnp.sin(table), adjacent)(jnp.asarray(arrays[f"apply_in_{name}"]))
            checks.append(Check(f"apply_{key}_{name}", relative_error(rotated, recorded), FORWARD_BAR))
    return checks


OPERATIONS = {
    "forward": check_forward,
    "reverse": check_inversion,
    "denoiser": check_denoiser,
    "apply_denoising": check_apply_denoising,
    "self_denoise": check_self_denoise,
    "process_denoising": check_process_denoising,
    "bpd": check_bits_per_dim,
    "train_steps": check_training,
    "rope": check_rope,
}


def run_experiment(folder: Folder, name: str) -> list[Check]:
    """All comparisons of one recorded experiment."""
    experiment = folder.meta["experiments"][name]
    return OPERATIONS[experiment["op"]](folder, name, experiment)


def inputs_of(folder: Folder) -> set[str]:
    """Arrays that are inputs and so need no comparison."""
    named = {key for e in folder.meta["experiments"].values() for key in e.get("inputs", {}).values()}
    return (
        named | {k for k in folder.arrays if k.startswith("apply_in_")} | {"update_prior/var_before", "update_prior/z"}
    )
