"""Fréchet distances in a space that no arm has learned: the principal axes of true latents.

arXiv 1706.08500, equation 6, on latents of one chunk of the shipped codecs instead of Inception's features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# R samples, F values of one, A axes.


@dataclass(frozen=True)
class Space:
    """A projection onto the axes of largest variance of true samples."""

    mean_F: np.ndarray
    axes_FA: np.ndarray

    @classmethod
    def of(cls, samples_RF: np.ndarray, axes: int) -> Space:
        """ValueError for fewer samples than axes."""
        if len(samples_RF) <= axes:
            raise ValueError(f"{axes} axes need more than {len(samples_RF)} samples")
        mean_F = samples_RF.mean(0)
        _, _, axes_RF = np.linalg.svd(samples_RF - mean_F, full_matrices=False)
        return cls(mean_F, axes_RF[:axes].T)

    def __call__(self, samples_RF: np.ndarray) -> np.ndarray:
        return (samples_RF - self.mean_F) @ self.axes_FA


def frechet_distance(ours_RA: np.ndarray, theirs_RA: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians fitted to samples."""
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (ours_RA, theirs_RA))
    # The trace of the root is the sum of roots of eigenvalues of C1 C2: those of a symmetric product.
    values, vectors = np.linalg.eigh(c1)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root).clip(0)).sum()
    return float(np.square(m1 - m2).sum() + np.trace(c1) + np.trace(c2) - 2 * shared)
