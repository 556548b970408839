"""Where models lie: shipped ones, runs, exported folders. Imports without torch."""

from __future__ import annotations

from pathlib import Path

import worldmodel
from ray_jobs.errors import UserError
from worldmodel.model_folder import INDEX_FILE

SHIPPED = Path(worldmodel.__file__).parent / "weights"


def find_model(name: str) -> Path:
    """Folder of an exported model: given itself, the run that holds it, or a shipped name. UserError names
    what is missing."""
    for folder in (Path(name), Path(name) / "export", Path("runs") / name / "export", SHIPPED / name):
        if (folder / INDEX_FILE).is_file():
            return folder
    hint = (
        "export it first: worldmodel export RUN --out DIR"
        if Path(name).is_dir()
        else f"no such folder or run; shipped: {', '.join(shipped_models()) or 'none'}"
    )
    raise UserError(f"{name}: not an exported model ({hint})")


def shipped_models() -> list[str]:
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{INDEX_FILE}"))


def check_beside(names: tuple[str, ...]) -> None:
    """UserError for a model of rollout.beside that is not there: now, not when training has ended."""
    for name in names:
        try:
            find_model(name)
        except UserError as error:
            raise UserError(*(f"rollout.beside: {line}" for line in error.lines)) from None
