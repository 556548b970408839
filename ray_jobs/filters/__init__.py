"""Filters and splits of the index, each off by default. What a filter drops is a row with its reason."""

from ray_jobs.filters.apply import filtered

__all__ = ["filtered"]
