"""Reading and writing images and videos. Files that are read are untrusted, and their sizes are bounded.

- `images`: pixels, a grid of samples, PNG files. `contact_sheet`: examples with captions.
- `video_writing`: MP4, GIF, strips and folders of frames; several videos in a grid.
- `file_kind`: what a file contains, by its first bytes. `displayed_images`, `displayed_frames`: the pixels of an image
  and of a frame of a video as viewers show them, for all readers. `deep_pixels`: more than eight bits.
- `medium`: which files of a folder are images or videos.
- `reading`: the frames of a video, a folder of images or an image. `clip_reading`: a few frames of a long video.
- `fitting`: frames cropped, resized and converted to the input of a model.
"""

from starflow_jax.media.fitting import fit_frame
from starflow_jax.media.images import grid_columns, image_grid, to_uint8, write_png
from starflow_jax.media.reading import Clip, read_video
from starflow_jax.media.video_writing import video_grid, video_strip, write_frames, write_gif, write_mp4, write_video

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
