"""Hooks of MkDocs: adds the generated pages, and resolves links that leave the folder of the documentation."""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import pages

ROOT = Path(__file__).resolve().parents[2]


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are generated from the code."""
    for name, build in (("configuration", pages.configuration_page), ("commands", pages.commands_page)):
        files.append(File.generated(config, f"reference/{name}.md", content=build()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links to files of the repository into links to `repo_url`, or, without one, into their text."""
    folder = PurePosixPath("docs") / PurePosixPath(page.file.src_uri).parent

    def resolve(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = (ROOT / folder / target).resolve()
        if not path.exists() or path.is_relative_to(ROOT / "docs"):
            return match[0]
        where = path.relative_to(ROOT).as_posix()
        return (
            f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{where})" if config.repo_url else f"{text} (`{where}`)"
        )

    return re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#:\s]+)\)", resolve, markdown)
