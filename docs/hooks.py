"""What the site makes of other files: each notebook in examples/notebooks becomes a page of its text and code cells."""

import json
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]


def on_files(files, config):
    """The files of the site and a Markdown page for each notebook."""
    for notebook in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        parts = ["".join(cell["source"]) for cell in cells]
        code = [cell["cell_type"] == "code" for cell in cells]
        page = [f"```python\n{part}\n```" if is_code else part for part, is_code in zip(parts, code, strict=True)]
        page.append(f"\nThis page is the notebook `examples/notebooks/{notebook.name}`; the tests run its cells.")
        made = File.generated(config, f"notebooks/{notebook.stem}.md", content="\n\n".join(page))
        files.append(made)
    return files
