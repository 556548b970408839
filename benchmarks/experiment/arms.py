"""The arms of the experiment, and which of them run at which size with which seeds.

What an arm changes is named in its overrides; data, their order, noise, initial weights of the transformer,
average and learning rate are the same in all arms of one seed. The learning rate is the best of a few for
plain flow matching.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avtok.load import codec_spec
from worldmodel.config import RunConfig
from worldmodel.flops import step_flops
from worldmodel.layout import Layout
from worldmodel.load_config import load_config

ROOT = Path(__file__).parents[2]
PLAIN, SELF_FLOW = "flow_matching", "self_flow"
TUNING_SEED = 100  # of the choice of a learning rate, apart from the seeds that are compared


@dataclass(frozen=True)
class Arm:
    """equal_flops: as many steps as cost what Self-Flow's cost."""

    title: str
    overrides: tuple[str, ...] = ()
    equal_flops: bool = False


_ONE_LEVEL = "objective.dual=false"
_NOTHING = ("objective.rep=none", _ONE_LEVEL)
ARMS = {
    PLAIN: Arm("flow matching", _NOTHING),
    SELF_FLOW: Arm("Self-Flow"),
    "dual": Arm("two noise levels alone", ("objective.rep=none",)),
    "flow_matching_flops": Arm("flow matching with Self-Flow's FLOPs", _NOTHING, equal_flops=True),
    "sra": Arm("SRA: teacher, one noise level", (_ONE_LEVEL, "objective.teacher_t=offset")),
    "layersync": Arm("LayerSync", (_ONE_LEVEL, "objective.rep=layersync", "objective.align_weight=0.2")),
    "velocity_heads": Arm("velocity heads", (_ONE_LEVEL, "objective.rep=velocity_heads")),
    "separated": Arm("Self-Flow, attention apart", ("objective.attention_separation=true",)),
    "shuffled": Arm("control: another clip's teacher", ("objective.teacher_shuffled=true",)),
}


@dataclass(frozen=True)
class Size:
    """One model size, the arms that are compared at it, and how many times the tier's steps it gets.

    tuned_as: the size whose learning rate it takes; its own choice without.
    """

    name: str
    overrides: tuple[str, ...]
    arms: tuple[str, ...]
    longer: int = 1
    tuned_as: str | None = None


@dataclass(frozen=True)
class Tier:
    """One machine's worth of the experiment. Of clips from a manifest no truth is known: no world.

    prepared: the folder of a manifest's latents, see manifest_clips.
    """

    config: str
    overrides: tuple[str, ...]
    world: str | None
    clips: int
    held_out: int  # clips for losses at the end and probes; the curve takes the first curve_clips
    curve_clips: int
    episodes: int  # that are rolled out
    steps: int
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    sizes: tuple[Size, ...]
    manifest: str | None = None
    prepared: Path | None = None

    def size(self, name: str) -> Size:
        return next(size for size in self.sizes if size.name == name)


@dataclass(frozen=True)
class Run:
    """One training run of the experiment."""

    size: str
    arm: str
    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        return f"{self.size}/{self.arm}/seed{self.seed}-lr{self.learning_rate:g}"


def _model(depth: int, width: int, head_dim: int) -> tuple[str, ...]:
    return f"model.depth={depth}", f"model.width={width}", f"model.head_dim={head_dim}"


_MAIN = (PLAIN, SELF_FLOW, "dual", "flow_matching_flops")
_EVERY = ("train.micro_batches=1", "data.batch_clips=8", "train.checkpoint_every=500")
CPU = Tier(
    config="configs/demo.yaml",
    overrides=("train.device=cpu", "train.precision=fp32", *_EVERY),
    world="bounce_one",
    clips=4096,
    held_out=128,
    curve_clips=32,
    episodes=64,
    steps=1000,
    seeds=(0, 1, 2),
    learning_rates=(2e-3, 1e-3, 4e-3, 8e-3, 16e-3),
    sizes=(
        Size("0.7M", _model(4, 64, 32), tuple(ARMS)),
        Size("0.2M", _model(4, 32, 32), _MAIN),
        Size("2M", _model(6, 96, 48), _MAIN),
        Size("0.7M-long", _model(4, 64, 32), (PLAIN, SELF_FLOW), longer=4, tuned_as="0.7M"),
    ),
)
GPU = Tier(
    config="configs/shipped/bounce.yaml",
    overrides=("train.device=cuda", "train.micro_batches=1", "data.batch_clips=64"),
    world="bounce",
    clips=16384,
    held_out=512,
    curve_clips=128,
    episodes=256,
    steps=20_000,
    seeds=(0, 1, 2),
    learning_rates=(1e-3, 5e-4, 2e-3),
    sizes=(
        Size("11M", _model(8, 192, 48), tuple(ARMS)),
        Size("37M", _model(12, 320, 64), _MAIN),
        Size("110M", _model(16, 512, 64), _MAIN),
        Size("11M-long", _model(8, 192, 48), (PLAIN, SELF_FLOW), longer=4, tuned_as="11M"),
    ),
)
SMOKE = Tier(
    config=CPU.config,
    overrides=(*CPU.overrides, "rollout.steps=2", "rollout.sound_lag=0"),
    world=CPU.world,
    clips=16,
    held_out=8,
    curve_clips=8,
    episodes=9,
    steps=4,
    seeds=(0, 1),
    learning_rates=(2e-3,),
    sizes=(Size("0.1M", _model(3, 32, 16), (PLAIN, SELF_FLOW, "flow_matching_flops")),),
)


def tuning_runs(tier: Tier, size: Size) -> list[Run]:
    """Plain flow matching at each learning rate; none where there is nothing to choose from."""
    rates, name = tier.learning_rates, size.tuned_as or size.name
    return [Run(name, PLAIN, TUNING_SEED, rate) for rate in rates] if len(rates) > 1 else []


def compared_runs(tier: Tier, size: Size, learning_rate: float) -> list[Run]:
    """Seed by seed: whatever is done first can be compared."""
    return [Run(size.name, arm, seed, learning_rate) for seed in tier.seeds for arm in size.arms]


def num_runs(tier: Tier) -> int:
    tuned = {run for size in tier.sizes for run in tuning_runs(tier, size)}
    return len(tuned) + sum(len(size.arms) for size in tier.sizes) * len(tier.seeds)


def config_of(tier: Tier, run: Run) -> RunConfig:
    """The whole config of one run; its steps are the tier's, or as many as cost Self-Flow's FLOPs."""
    size, arm = tier.size(run.size), ARMS[run.arm]
    steps = tier.steps * size.longer
    common = [
        *tier.overrides,
        *size.overrides,
        f"seed={run.seed}",
        f"optim.lr={run.learning_rate:g}",
        f"train.evaluate_clips={tier.curve_clips}",
    ]
    if arm.equal_flops:
        plain, ours = (
            _flops(load_config(ROOT / tier.config, [*common, *a.overrides])) for a in (arm, ARMS[SELF_FLOW])
        )
        steps = round(steps * ours / plain)
    counted = [f"train.steps={steps}", f"train.evaluate_every={max(1, steps // 20)}"]
    return load_config(ROOT / tier.config, [*common, *counted, *arm.overrides])


def flops_of_step(cfg: RunConfig) -> float:
    """Of one step of all micro-batches."""
    return _flops(cfg) * cfg.train.micro_batches


def _flops(cfg: RunConfig) -> float:
    return step_flops(cfg, layout_of(cfg), cfg.data.batch_clips).total


def layout_of(cfg: RunConfig) -> Layout:
    return Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
