"""Hooks of mkdocs: every Markdown file is a page under its own path, so that its links work on GitHub and in the site."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from labkit.system.labs import ROOT, all_labs

SECTIONS = {
    "Reference": ("docs/glossary.md", "docs/verify.md", "docs/first-pull-request.md"),
    "The code": ("docs/architecture.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    "The engine": ("mini_vllm/README.md", "mini_vllm/kernels/README.md", "benchmarks/README.md", "benchmarks/ledger.md"),
    "Containers": ("docker/README.md", "devcontainer/README.md"),
}
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)#:]+)\)")


def pages() -> list[str]:
    """Returns the path of every Markdown file that is tracked or not ignored, relative to the root."""
    listed = ["git", "ls-files", "-co", "--exclude-standard", "--deduplicate", "--", "*.md"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [name for name in sorted(names) if (ROOT / name).is_file()]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Sets the order of the pages: the labs in the order of the course; pages without a section come last."""
    labs = [f"labs/{lab.folder.name}/README.md" for lab in all_labs()]
    sections = {"The labs": labs} | {title: list(names) for title, names in SECTIONS.items()}
    named = {"README.md"}.union(*sections.values())
    sections["For maintainers"] = [name for name in pages() if name not in named]
    # The heading of a template is the name of the package that is created from it.
    titles = {name: f"./lab new-model --like {Path(name).parent.name}" for name in pages() if "/templates/" in name}
    entries = {title: [{titles[name]: name} if name in titles else name for name in names] for title, names in sections.items()}
    config.nav = [{"Start": "README.md"}, *({title: names} for title, names in entries.items())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, their pictures and the stylesheet under their own paths; mkdocs would only take those in docs/."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    wanted = dict.fromkeys(pages())
    for page in pages():
        for image in IMAGE.findall((ROOT / page).read_text(encoding="utf-8")):
            wanted[(ROOT / page).parent.joinpath(image).resolve().relative_to(ROOT).as_posix()] = None
    ours = [*wanted, *config.extra_css]
    return Files([*theme, *(File.generated(config, name, abs_src_path=str(Path(ROOT, name))) for name in ours)])
