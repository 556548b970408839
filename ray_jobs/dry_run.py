"""`worldmodel train --dry-run`: what a run would take, without a cluster, Ray, CUDA or any weights."""

from __future__ import annotations

import math
from typing import Any

from avtok.load import codec_spec
from ray_jobs.buckets import Bucket, Kinds, empty_slots, largest_buckets, shaped_layout, shapes_differ
from ray_jobs.cli_output import answer
from ray_jobs.cluster import CPUS_PER_DECODER
from ray_jobs.declared_cluster import Cluster, declared_cluster
from ray_jobs.errors import UserError
from ray_jobs.fitting import GB, needs, refuse_too_many_workers, refuse_what_cannot_fit
from ray_jobs.learnable import check_learnable, never_reached, prefix_notes, useless_clips
from ray_jobs.model_cost import build_on_meta, parameters_by_part
from ray_jobs.model_fit import init_lines
from ray_jobs.models import check_encoders, check_lora
from ray_jobs.preflight import check_codecs
from ray_jobs.source_size import Described, describe_data, is_elsewhere
from ray_jobs.state_memory import Counts
from ray_jobs.step_time import step_time
from ray_jobs.worker_memory import sizes
from worldmodel.config import RunConfig
from worldmodel.flops import step_flops
from worldmodel.gpus import GPUS
from worldmodel.layout import Layout

ESTIMATES = ("activations on a GPU", "seconds", "data of a source that is not indexed")
KINDS = (
    "weights",
    "optimizer",
    "gradients",
    "teacher",
    "whole",
    "buffers",
    "batches",
    "gathered",
    "activations",
)

WORST = {
    "building": "while it is built",
    "step": "within a step",
    "update": "as weights are updated",
    "commit": "while a commit is written",
}


def dry_run(cfg: RunConfig, cluster: Cluster | None = None) -> dict[str, Any]:
    """Facts by topic; bytes and counts are whole numbers. UserError for what does not divide, or does not fit
    the workers of a declared cluster."""
    cluster = cluster or Cluster()
    refuse_too_many_workers(cfg, cluster)
    check_lora(cfg.train.lora)
    layout = _layout(cfg)
    try:
        begins_from = [*_begins_from(cfg, layout), *_follows(cfg)]
        student = build_on_meta(cfg, layout)
    except ValueError as error:
        raise UserError(str(error)) from None
    parts = parameters_by_part(student)
    on_gpu = cfg.train.device == "cuda" or (cfg.train.device == "auto" and cluster.has_gpus)
    data = describe_data(cfg)
    if on_gpu:
        _check_fp8(cfg, cluster)
    groups = cfg.train.workers // cfg.train.sequence_parallel  # of workers that train on the same clips
    kinds = data.kinds
    memory = sizes(cfg, student, on_gpu=on_gpu, kinds=kinds)
    refuse_what_cannot_fit(cfg, cluster, on_gpu=on_gpu, memory=memory, kinds=kinds)
    costly, flops = _most_costly(cfg, kinds)
    layout, batch_clips = shaped_layout(cfg, costly.clip_s, costly.size), costly.batch_clips
    clips = cfg.train.micro_batches * batch_clips
    takes = None
    if on_gpu or not cluster.has_gpus:  # else its rates are those of GPUs that would be idle
        takes = step_time(cfg, layout, cluster, Counts.of(student, cfg.train.workers), batch_clips)
    plain = cfg.model_copy(update={"objective": cfg.objective.model_copy(update={"rep": "none"})})
    return {
        "name": cfg.name,
        "begins_from": begins_from,
        "warnings": _warnings(cfg, data, cluster, on_gpu=on_gpu),
        "reckoned": _reckoned(cfg, memory.bucket, costly, kinds),
        "parameters": {"total": sum(parts.values()), **parts},
        "tokens": {
            "clip": layout.length,
            "micro_batch": layout.length * batch_clips,
            "step": layout.length * clips,
            "parts": {
                "text": layout.text_tokens,
                "video": layout.num_chunks * layout.video_tokens,
                "audio": layout.num_chunks * layout.audio_tokens,
                "action": layout.num_chunks,
            },
        },
        "worker_bytes": memory.as_facts()
        | {"needed_gb": {need.memory: need.gb for need in needs(memory, cluster, on_gpu=on_gpu)}},
        "checkpoint_bytes": {
            "one": memory.checkpoint,
            "kept": memory.checkpoint * cfg.train.keep_checkpoints,
        },
        "data": data.facts,
        "train": {
            "steps": cfg.train.steps,
            "clips_per_step": clips,
            "micro_batches_per_worker": math.ceil(cfg.train.micro_batches / groups),
            "idle_slots": empty_slots(cfg),
            "commits": math.ceil(cfg.train.steps / cfg.train.checkpoint_every),
            "flops_per_step": flops * cfg.train.micro_batches,
            "over_flow_matching": flops / step_flops(plain, layout, batch_clips).total,
        },
        "cluster": {
            "workers": cfg.train.workers,
            "cpus": cfg.train.workers * (1 + max(1, cfg.data.decode_actors) * CPUS_PER_DECODER),
            "gpus": cfg.train.workers if on_gpu else 0,
            "gpus_if_any": cfg.train.device == "auto" and not on_gpu,
            "declared": cluster.model_dump(exclude_none=True),
        },
        "seconds": takes.as_facts(cfg, cluster) if takes else None,
        "estimates": list(ESTIMATES),
    }


def _warnings(cfg: RunConfig, data: Described, cluster: Cluster, *, on_gpu: bool) -> list[str]:
    """What a run would say, too; UserError for one that can learn nothing."""
    notes = [*never_reached(cfg), *prefix_notes(cfg)]
    if data.contents is not None:
        check_learnable(data.contents, cfg)
        notes += useless_clips(data.contents, cfg)
    if cluster.has_gpus and not on_gpu:
        notes.append(
            f"train.device={cfg.train.device} leaves the GPUs of --cluster idle: memory and time on them are "
            "not reckoned"
        )
    return notes


def _check_fp8(cfg: RunConfig, cluster: Cluster) -> None:
    """UserError where a worker would refuse its GPU."""
    if cfg.train.fp8 and cluster.gpu and not GPUS[cluster.gpu].has_fp8:
        having = ", ".join(name for name, gpu in GPUS.items() if gpu.has_fp8)
        raise UserError(
            f"train.fp8=true needs a GPU with FP8 units, and gpu={cluster.gpu} has none; set train.fp8=false "
            f"or take one of {having}"
        )


def _most_costly(cfg: RunConfig, kinds: Kinds) -> tuple[Bucket, float]:
    """The bucket whose micro-batch computes most, and its FLOPs. Smaller micro-batches take less."""
    flops = {
        bucket: step_flops(cfg, shaped_layout(cfg, bucket.clip_s, bucket.size), bucket.batch_clips).total
        for bucket in largest_buckets(cfg, kinds)
    }
    costly = max(flops, key=flops.__getitem__)
    return costly, flops[costly]


def _reckoned(cfg: RunConfig, largest: Bucket, costly: Bucket, kinds: Kinds) -> str:
    """Which of several micro-batches the numbers are of; empty where there is one."""
    if not shapes_differ(cfg, kinds):
        return ""
    if largest == costly:
        return f"reckoned with its largest micro-batch: {largest}"
    return f"reckoned with its largest micro-batches: memory of {largest}, tokens and time of {costly}"


def answer_dry_run(cfg: RunConfig, cluster: str | None, as_json: bool) -> None:
    """cluster: as --cluster gives it."""
    declared = declared_cluster(cluster, cfg.train.precision, cfg.train.workers) if cluster else None
    facts = dry_run(cfg, declared)
    answer(facts, as_json, describe(facts))


def describe(facts: dict[str, Any]) -> str:
    """Lines for people."""
    size, tokens, cluster = facts["worker_bytes"], facts["tokens"], facts["cluster"]
    parts = [f"  {part}: {_count(n)}" for part, n in facts["parameters"].items() if part != "total"]
    train, data, stored = facts["train"], facts["data"], facts["checkpoint_bytes"]
    idle = f"; {train['idle_slots']} slots a step are empty" if train["idle_slots"] else ""
    maybe = " (and as many GPUs, if the cluster has any)" if cluster["gpus_if_any"] else ""
    return "\n".join(
        [
            *facts["begins_from"],
            *(f"warning: {note}" for note in facts["warnings"]),
            *([facts["reckoned"]] if facts["reckoned"] else []),
            f"parameters: {_count(facts['parameters']['total'])}",
            *parts,
            f"tokens: {tokens['clip']} a clip, {tokens['micro_batch']} a micro-batch, "
            f"{tokens['step']} a step",
            f"memory of a worker: {size['total'] / GB:.2f} GB at most ({WORST[size['worst_at']]}), and what "
            "libraries take",
            f"  {', '.join(f'{kind} {size[kind] / GB:.2f}' for kind in KINDS if size[kind])}",
            *(f"  of {name} memory with libraries: {gb:.3g} GB" for name, gb in size["needed_gb"].items()),
            f"checkpoint: {stored['one'] / GB:.2f} GB, {stored['kept'] / GB:.2f} GB kept",
            f"data: {_data_words(data)}",
            f"steps: {train['steps']} of {train['clips_per_step']} clips, {train['commits']} commits{idle}",
            f"compute: {train['flops_per_step'] / 1e12:.3g} TFLOP a step of all workers, "
            f"{train['over_flow_matching']:.2f} of plain flow matching's",
            *_time_words(facts["seconds"]),
            f"cluster: {cluster['workers']} workers, {cluster['cpus']:g} CPUs, {cluster['gpus']} GPUs{maybe}",
        ]
    )


def _begins_from(cfg: RunConfig, layout: Layout) -> list[str]:
    """As training says it. A folder that only the cluster has is not looked at. ValueError for what does not
    fit."""
    if is_elsewhere(cfg.train.init):
        return [f"begins from {cfg.train.init}, which is not on this machine: whether it fits is not known"]
    return init_lines(cfg, layout)


def _follows(cfg: RunConfig) -> list[str]:
    """Encoders that only the cluster has; followed or not, they run. UserError for what here is none."""
    elsewhere = [target for target in cfg.data.targets if is_elsewhere(target.encoder)]
    check_encoders([target for target in cfg.data.targets if target not in elsewhere])
    return [
        f"data.targets: {target.name}: {target.encoder} is not on this machine: whether it is an encoder "
        f"{f'of width {target.width} ' if target.width else ''}is not known"
        for target in elsewhere
    ]


def _layout(cfg: RunConfig) -> Layout:
    try:
        video, audio = codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio)
        check_codecs(video, audio, cfg.data)
        for bucket in largest_buckets(cfg):  # their sizes have to divide too
            shaped_layout(cfg, bucket.clip_s, bucket.size)
        return Layout.from_specs(cfg, video, audio)
    except ValueError as error:
        raise UserError(str(error)) from None


def _data_words(data: dict[str, Any]) -> str:
    if "clips" not in data:
        return data["known"].removeprefix("no: ")
    return (
        f"{data['clips']} clips, {data['hours']:.3g} hours ({data['known']}); about "
        f"{data['batches_per_epoch']} micro-batches and {data['steps_per_epoch']:.4g} steps an epoch, "
        f"{data['epochs']:.3g} epochs"
    )


def _time_words(seconds: dict[str, Any] | None) -> list[str]:
    if seconds is None:
        return []
    return [
        f"time: about {seconds['step_s']:.3g} s a step, {seconds['run_hours']:.3g} hours in all (estimate: "
        f"{seconds['efficiency']:.2f} of the declared rate; {seconds['communication_s']:.3g} s of a step are "
        "communication)"
    ]


def _count(number: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)
