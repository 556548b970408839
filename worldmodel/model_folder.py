"""Where models lie and how their files are named. Imports without torch."""

from __future__ import annotations

from pathlib import Path

INDEX_FILE = "model_index.json"
FACTS_FILE = "facts.json"  # what the model card says, for programs
WEIGHTS = "diffusion_pytorch_model.safetensors"
SHIPPED = Path(__file__).parent / "weights"


def shipped_models() -> list[str]:
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{INDEX_FILE}"))


def model_folder(name: str) -> Path:
    """Folder of an exported model: given itself, the run that holds it, or a shipped name. ValueError names
    what is missing."""
    for folder in (Path(name), Path(name) / "export", Path("runs") / name / "export", SHIPPED / name):
        if (folder / INDEX_FILE).is_file():
            return folder
    hint = (
        "export it first: worldmodel export RUN --out DIR"
        if Path(name).is_dir()
        else f"no such folder or run; shipped: {', '.join(shipped_models()) or 'none'}"
    )
    raise ValueError(f"{name}: not an exported model ({hint})")
