"""What mkdocs is told while it builds the site: a page may show pictures that lie beside the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def on_files(files: Any, config: Any) -> Any:
    """Add the benchmarks' pictures to the site; docs/benchmarks.md includes their page."""
    for picture in sorted(BENCHMARKS.glob("*.png")):
        files.append(File.generated(config, picture.name, abs_src_path=str(picture)))
    return files
