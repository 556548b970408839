"""The transformer with what only the student has: heads whose outputs follow more than the velocity.

Heads are trained but neither averaged nor exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from worldmodel.config import SelfFlowConfig, TargetConfig
from worldmodel.layout import Layout
from worldmodel.model.level_rows import split_text
from worldmodel.model.transformer import Tokens, WorldTransformer

# B clips, L tokens, N chunks, V tokens of one modality in a chunk, D width, C values of a token.

TARGET_HIDDEN = 2048  # of REPA's projection (arXiv 2410.06940)


class SelfFlowStudent(nn.Module):
    """`head` for the EMA teacher (arXiv 2603.06507, section 3.4), `target_heads` for frozen encoders,
    `velocity_heads` of hidden layers; which of them, objective.rep says."""

    def __init__(
        self,
        transformer: WorldTransformer,
        objective: SelfFlowConfig | None = None,
        targets: Sequence[TargetConfig] = (),
    ) -> None:
        """ValueError for a target of unknown width."""
        super().__init__()
        rep = (objective or SelfFlowConfig()).rep
        width, layout = transformer.cfg.width, transformer.layout
        self.transformer = transformer
        self.modality_of = {t.name: t.modality for t in targets} if rep == "repa" else {}
        self.head = teacher_head(width) if rep == "ema" else None
        self.target_heads = nn.ModuleDict({t.name: target_head(width, t) for t in targets if rep == "repa"})
        values = {"video": layout.video_values, "audio": layout.audio_values}
        num_heads = 2 if rep == "velocity_heads" else 0
        self.velocity_heads = nn.ModuleList(
            nn.ModuleDict({m: velocity_head(width, n) for m, n in values.items()}) for _ in range(num_heads)
        )

    def forward(
        self,
        tokens: Tokens,
        level_BK: Tensor,
        level_of_BL: Tensor,
        *,
        layout: Layout | None = None,
        features: Sequence[int] = (),
        **options: Any,
    ) -> dict[str, Any]:
        """As the transformer, and of its features `projected` [B, L, D], `predicted_targets` by name [B, N,
        V, width] and `velocities` by layer and modality [B, N, V, C]."""
        layout = self.transformer.layout if layout is None else layout
        out: dict[str, Any] = self.transformer(
            tokens, level_BK, level_of_BL, layout=layout, features=features, **options
        )
        if not features:
            return out
        first = out["features"][0]
        if self.head is not None:
            out["projected"] = self.head(first)
        out["predicted_targets"] = {
            name: head(tokens_of(first, self.modality_of[name], layout))
            for name, head in self.target_heads.items()
        }
        out["velocities"] = [
            {m: head(tokens_of(hidden, m, layout)) for m, head in heads.named_children()}
            for heads, hidden in zip(self.velocity_heads, out["features"], strict=False)
        ]
        return out


def teacher_head(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))


def target_head(width: int, target: TargetConfig) -> nn.Module:
    if target.width is None:
        raise ValueError(f"data.targets: {target.name}: width is not set; set it to that of its features")
    return nn.Sequential(
        nn.Linear(width, TARGET_HIDDEN),
        nn.SiLU(),
        nn.Linear(TARGET_HIDDEN, TARGET_HIDDEN),
        nn.SiLU(),
        nn.Linear(TARGET_HIDDEN, target.width),
    )


def velocity_head(width: int, values: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, values))


def tokens_of(x_BLD: Tensor, modality: str, layout: Layout) -> Tensor:
    """[B, N, V, D]: the tokens of one modality, chunk by chunk."""
    _, chunks = split_text(x_BLD, layout)
    _, video, audio = chunks.split(layout.parts, dim=2)
    return (video if modality == "video" else audio).contiguous()
