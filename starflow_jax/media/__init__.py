"""Pictures and videos, out and in; everything that is read may come from anywhere, and is bounded.

- `pictures`: pixels, a grid of samples, PNG files.
- `writing`: MP4, GIF, strips and folders of frames; several videos as one.
- `reading`: a video, a folder of pictures or a picture, as frames.
- `fitting`: frames cropped, resized and recoloured to what a model takes.
"""

from starflow_jax.media.fitting import fit_frame
from starflow_jax.media.images import grid_columns, image_grid, to_uint8, write_png
from starflow_jax.media.reading import Clip, read_video
from starflow_jax.media.writing import video_grid, video_strip, write_frames, write_gif, write_mp4, write_video

__all__ = [
    "Clip",
    "fit_frame",
    "grid_columns",
    "image_grid",
    "read_video",
    "to_uint8",
    "video_grid",
    "video_strip",
    "write_frames",
    "write_gif",
    "write_mp4",
    "write_png",
    "write_video",
]
