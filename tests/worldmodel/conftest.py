"""A tiny model whose gates are open, its layout and a batch."""

from __future__ import annotations

import pytest

from tests.worldmodel.synthetic import make_batch, open_model, tiny_config, tiny_layout
from worldmodel.batch import LatentBatch
from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.model.transformer import WorldTransformer


@pytest.fixture
def cfg() -> RunConfig:
    return tiny_config()


@pytest.fixture
def layout(cfg: RunConfig) -> Layout:
    return tiny_layout(cfg)


@pytest.fixture
def batch(layout: Layout) -> LatentBatch:
    return make_batch(layout)


@pytest.fixture
def model(cfg: RunConfig, layout: Layout) -> WorldTransformer:
    return open_model(cfg, layout)
