"""STARFlow-V 7B, 480p video at 16 frames/s, 81 frames (arXiv 2511.20462): the released video configuration.

    starflow encode --config experiments/starflow_v_7b.py --config.data.source=videos --config.data.path=VIDEOS \\
        --config.data.mixture="()" --config.data.fps=16 --config.data.frames=85 \\
        --config.data.aspect_ratios="('16:9',)" --config.data.captions.fps=True \\
        --config.data.captions.noise_level=True --autoencoder Wan2.2_VAE.pth:0.6 --text-encoder flan-t5-xl \\
        --out data/video_latents480/train
    (the same with --split test --out data/video_latents480/test, of VIDEOS/test/)
    starflow train --config experiments/starflow_v_7b.py --workdir W

Data: 70 M videos (a part of Panda, and stock videos) and 400 M images with captions, one in ten original and the others
synthetic. Wan2.2 latents, 48 channels, 21 latent frames of 22 x 40 (16:9 of a 640 x 640 area, stride 16), with the
states of Flan-T5-XL, 256 tokens; captions state the frame rate and the noise level. Batches have 192 videos or, one in
five, 1,536 images (secondary_ratio 0.2). A quarter of the clips begin at their second latent frame, so one more latent
frame is stored. Latents of videos are in data/video_latents480, those of images in data/latents480 (`data.mixture`).
Model: a deep block of 24 layers, 4,096 wide, five shallow blocks of 2 layers inside each frame, 3,072 wide, and a
learned denoiser of 8 layers. 6,890,096,528 parameters, including 912,884,784 of the denoiser.
Hardware: neither the hardware nor the training time is published; training is on images first, then 384p, then 480p.
Published: 480p clips of 81 frames; Jacobi about 15 times as fast as sequential inversion; 26.7 dB after denoising by
the learned denoiser against 22.1 by the score. `starflow vbench` samples the videos for VBench (docs/video_quality.md).
`experiments/starflow_v_7b.py:tiny` is the same model at a size for tests.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import STARFLOW, is_tiny


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" as released, "tiny" for tests."""
    tiny = is_tiny(variant)
    config = ConfigDict()
    config.name = "starflow-v-7b-480p"
    config.flow = ConfigDict(
        {
            **STARFLOW,
            "channels": 48,
            "image_size": 40,
            "patch_size": 1,
            "width": 3072,
            "deep_width": 4096,
            "num_blocks": 6,
            "layers_per_block": (2, 2, 2, 2, 2, 24),
            "head_dim": 64,
            "pt_seq_len": 32,
            "text_dim": 2048,
            "text_length": 256,
            "temporal_causal": True,
            "shallow_local": True,
            "denoiser": {"layers": 8, "conditional": True, "look_ahead": 2, "window": 10},
            "dtype": "bfloat16",
            "remat": "block",
        }
    )
    config.data = ConfigDict(
        {
            "source": "mixture",
            "frames": 21,
            "mixture": (
                {
                    "source": "latents", "path": "data/video_latents480", "frames": 21, "drop_first": 0.25,
                    "weight": 0.8, "fps": 16.0, "captions": {"fps": True, "noise_level": True},
                },
                {"source": "latents", "path": "data/latents480", "weight": 0.2, "batch_size": 4 if tiny else 1536,
                 "captions": {"fps": True, "noise_level": True}},
            ),
            "noise": "gaussian",
            "noise_std": 0.5,
            "label_drop": 0.1,
            "threads": 8,
        }
    )  # fmt: skip
    config.train = ConfigDict(
        {
            "steps": 100_000,
            "batch_size": 192,
            "lr": 5e-5,
            "min_lr": 1e-6,
            "warmup": 1000,
            "schedule": "starflow",
            "grad_clip": 1.0,
            "noise_weight": True,
        }
    )
    # Parameters and optimizer moments are sharded over all devices; docs/plan.md compares layouts.
    config.mesh = ConfigDict({"data": 1, "fsdp": -1})
    config.sample = ConfigDict({"num": 1, "guidance": 3.5, "solver": "jacobi", "denoise": "learned"})
    if tiny:
        config.flow.update({"channels": 4, "image_size": 4, "width": 20, "deep_width": 40, "head_dim": 20})
        config.flow.update({"num_blocks": 2, "layers_per_block": (1, 1), "text_dim": 8, "text_length": 4})
        config.flow.update({"pt_seq_len": 3, "dtype": "float32", "remat": "none"})
        config.flow.denoiser.update({"layers": 1, "window": 2})
        config.train.update({"steps": 10, "batch_size": 4, "warmup": 1})
    return config
