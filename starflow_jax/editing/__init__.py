"""Inverse problems and edits with a trained flow, without further training.

- `operators`: linear measurements of an image or a clip, such as a mask or means of blocks.
- `posterior`: the density p(x | y) of data x given a measurement y, by the exact density of the flow.
- `flow_prior`: a flow as the prior of it.
- `langevin_moves`, `latent_moves`: transitions of Markov chains that leave this density invariant.
- `chains`: many chains at once on a device; `burn_in`: how they reach the posterior; `posterior_sampling`: both.
- `resuming`: a folder that keeps chains while they run, to continue them; `chain_record`: its record;
  `chain_request`, `request_values`: what their draws depend on, and how two requests are compared.
- `convergence`: effective sample size and R-hat of the draws.
- `restoration`: `restore`, which fills in, enlarges, denoises or colours the pixels of a run's model.
- `latent_edits`: `interpolate` and `change_condition`, by way of the noise z of data.
"""
