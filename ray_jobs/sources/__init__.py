"""What users bring, local or remote, read into rows: folders, manifests, WebDataset and LeRobot."""

from ray_jobs.sources.actions import with_actions
from ray_jobs.sources.read import read_sources
from ray_jobs.sources.rows import RowError, SourceRow, SourceRows

__all__ = ["RowError", "SourceRow", "SourceRows", "read_sources", "with_actions"]
