"""Names of videos for VBench (Huang et al., arXiv 2311.17982): DIMENSION/PROMPT-INDEX.mp4.

VBench looks for every prompt of a dimension by its exact text, index 0 to 4. It requires 25 videos of a prompt of
"temporal_flickering" and uses those that move. Five of its 16 dimensions have no prompts and are scored on the videos
of another dimension (`FOLDERS`). It takes the suffix from any file of a folder, which must therefore hold videos
alone. A prompt that is not a valid file name is an error, because VBench would not find it under another name.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from starflow_jax.core.config.checks import check
from starflow_jax.core.regular_files import read_text

DIMENSIONS = (
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree",
    "aesthetic_quality", "imaging_quality", "object_class", "multiple_objects", "human_action", "color",
    "spatial_relationship", "scene", "temporal_style", "appearance_style", "overall_consistency",
)  # fmt: skip
# For dimensions without prompts, the dimension whose videos they are scored on.
FOLDERS = {
    "background_consistency": "scene",
    "aesthetic_quality": "overall_consistency",
    "imaging_quality": "overall_consistency",
    "motion_smoothness": "subject_consistency",
    "dynamic_degree": "subject_consistency",
}
VIDEOS, VIDEOS_OF_FLICKERING = 5, 25
MAX_VIDEOS = 1000  # videos of a prompt: VBench requires 25 at most
_LONGEST_NAME = 255  # bytes, of Linux, macOS and Windows alike
_MAX_BYTES = 2**22


@dataclasses.dataclass(frozen=True)
class WantedVideo:
    """One video to sample.

    Attributes:
      dimension: of VBench; prompt: its caption; index: among the videos of the prompt.
    """

    dimension: str
    prompt: str
    index: int

    @property
    def file(self) -> str:
        """The path in the folder of the export."""
        return f"{self.dimension}/{video_name(self.prompt, self.index)}"

    @property
    def place(self) -> tuple[int, int]:
        """The integers that determine its noise (`videos.frame_noise`): the CRC-32 of the prompt, and the index.

        The probability that two of the 946 prompts of VBench share a CRC is 1e-4.
        """
        return zlib.crc32(self.prompt.encode("utf-8")), self.index


def video_name(prompt: str, index: int) -> str:
    """The file name of a video.

    Raises:
      ValueError: the prompt is not valid in a file name.
    """
    shortened = prompt if len(prompt) <= 60 else f"{prompt[:57]}..."
    check(
        prompt.strip() == prompt and prompt != "",
        f"prompt must have words, and no space around them, got {shortened!r}",
    )
    bad = re.search(r"[/\x00-\x1f\x7f]", prompt)
    check(bad is None, f"prompt {shortened!r} cannot be a file name: it contains {bad.group() if bad else ''!r}")
    name = f"{prompt}-{index}.mp4"
    length = len(name.encode("utf-8"))
    check(length <= _LONGEST_NAME, f"prompt {shortened!r} makes a file name of {length} bytes, above {_LONGEST_NAME}")
    return name


def prompt_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The files DIMENSION.txt at a path (a file or a folder), and the other .txt files of the folder.

    Raises:
      ValueError: there is no such file or folder, or no file is named after a dimension.
    """
    check(path.exists(), f"prompts {path} does not exist")
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    check(len(files) > 0, f"prompts folder {path} contains no .txt files")
    named = [file for file in files if file.stem in DIMENSIONS]
    check(
        len(named) > 0,
        f"prompts must be in files called after a dimension ({', '.join(DIMENSIONS)}), got {files[0].name}",
    )
    return named, [file for file in files if file not in named]


def read_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """Prompts by dimension, from one file DIMENSION.txt with a prompt a line, or from all such files of a folder.

    Repeated prompts, which would have the same file name, and empty lines are left out.

    Raises:
      ValueError: see `prompt_files`; no prompts, bytes that are not UTF-8, or a prompt that is no valid file name.
    """
    by_dimension = {}
    for file in prompt_files(path)[0]:
        try:
            lines = read_text(file, _MAX_BYTES).splitlines()
        except OSError as error:
            raise ValueError(f"prompts {file} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"prompts {file} must be text in UTF-8, got other bytes") from error
        prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
        check(len(prompts) > 0, f"prompts {file} must contain a prompt, got none")
        for prompt in prompts:
            video_name(prompt, MAX_VIDEOS - 1)
        by_dimension[file.stem] = prompts
    return by_dimension


def scored_on(sampled: Collection[str]) -> dict[str, str]:
    """For each dimension that videos of the dimensions `sampled` can be scored on, the dimension of the videos."""
    folders = {name: name if name in sampled else FOLDERS.get(name, name) for name in DIMENSIONS}
    return {name: folder for name, folder in folders.items() if folder in sampled}


def wanted_videos(prompts: Mapping[str, Sequence[str]], each: int | None = None) -> list[WantedVideo]:
    """All videos of the prompts of some dimensions.

    Args:
      prompts: by dimension.
      each: videos of a prompt; None for the number that VBench requires.

    Raises:
      ValueError: `each` is out of range.
    """
    check(each is None or 1 <= each <= MAX_VIDEOS, f"videos of a prompt must be 1 to {MAX_VIDEOS}, got {each}")
    videos = []
    for dimension, texts in prompts.items():
        count = each or (VIDEOS_OF_FLICKERING if dimension == "temporal_flickering" else VIDEOS)
        videos += [WantedVideo(dimension, prompt, index) for prompt in texts for index in range(count)]
    return videos
