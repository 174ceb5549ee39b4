"""Lossless files of images and clips by the likelihood of a flow.

- `compress`, `decompress`: `image_codec.py`;
- the entropy coder `rans.py`, and the codes of numbers on it: `modular_scale.py`, `noise_code.py`, `pixel_grid.py`;
- `flow_coder.py`: which token is coded when, by the programs of `token_programs.py`;
- `file_format.py` and `environment.py`: what a file holds, and what must agree for it to be decoded.
"""
