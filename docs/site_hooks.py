"""How files that are read in the repository too become a site: some of them, and some links, lie outside `docs`."""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "changelog.md": ROOT / "CHANGELOG.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "experiments.md": ROOT / "experiments" / "README.md",
}
"""Pages of the site that are written outside `docs`."""

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie elsewhere."""
    for name, path in ELSEWHERE.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to what the site does not have become its name: a reader of the site finds it in the repository."""
    written_in = Path(page.file.abs_src_path or "").parent
    pages = {path: name for name, path in ELSEWHERE.items()}
    docs = Path(config.docs_dir)

    def mended(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = Path(os.path.normpath(written_in / target))
        if not path.exists():
            return link[0]  # the build complains of it
        name = pages.get(path) or (path.is_relative_to(docs) and path.is_file() and path.relative_to(docs).as_posix())
        if not name:
            return f"{text} (`{path.relative_to(ROOT)}`)" if path.name not in text else text
        return f"[{text}]({os.path.relpath(name, Path(page.file.src_uri).parent)}{anchor})"

    return LINK.sub(mended, markdown)
