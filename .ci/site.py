"""Makes the site's pages that docs/ lacks: README, CONTRIBUTING, and the API from docstrings."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
_OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}


def on_config(config: Any) -> Any:
    """Adds a page of the API for each folder of the package to the navigation."""
    config.nav.append({"API": [{folder: f"api/{folder}.md"} for folder in _folders()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages."""
    pages = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in _OUTSIDE.items()}
    for folder, modules in _folders().items():
        listed = "\n\n".join(f"::: {module}" for module in modules)
        pages[f"api/{folder}.md"] = f"# {folder}\n\n{listed}\n"
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Leads links between README, guides and files to where they are on the site."""
    place = page.file.src_uri
    original = {page: source for source, page in _OUTSIDE.items()}.get(place, f"docs/{place}")

    def link(found: re.Match[str]) -> str:
        label, path, anchor = found[1], found[2], found[3] or ""
        target = os.path.normpath(os.path.join(os.path.dirname(original), path))
        if target == "docs/lab":
            target = "docs/lab/paths.md"
        if target in _OUTSIDE:
            to = _OUTSIDE[target]
        elif target.startswith("docs/"):
            to = target.removeprefix("docs/")
        else:
            return label  # a file of the repository, which is not on the site
        return f"[{label}]({os.path.relpath(to, os.path.dirname(place) or '.')}{anchor})"

    return re.sub(r"\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)", link, text)


def _folders() -> dict[str, list[str]]:
    """Returns the modules of each folder of the package, those of none first."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "jaxdeblur").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        folder = parts[1] if len(parts) > 2 else "jaxdeblur"
        if path.name != "__init__.py" or folder == "jaxdeblur":
            found.setdefault(folder, []).append(name)
    found["kernels"] = [
        f"kernels.{path.stem}" for path in sorted((ROOT / "kernels").glob("[a-z]*.py"))
    ]
    return {"jaxdeblur": found.pop("jaxdeblur"), **found}
