"""The site takes in what lies beside docs/ and is linked from there: recorded results and the contributor's guide."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent


def on_files(files: Files, config: Any) -> Files:
    """Add results/ and CONTRIBUTING.md to the site's files."""
    for path in sorted((ROOT / "results").iterdir()):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    files.append(File.generated(config, "contributing.md", abs_src_path=str(ROOT / "CONTRIBUTING.md")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links at where those files are on the site."""
    return markdown.replace("](../results/", "](results/").replace("](docs/", "](")
