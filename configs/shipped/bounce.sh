#!/usr/bin/env bash
# How the shipped `bounce` is made, from the project's root: bash configs/shipped/bounce.sh DIR
# Each command goes on from where it was stopped; DIR/export is what worldmodel/weights/bounce holds.
set -euo pipefail
out=${1:?give a folder}
export PYTHONPATH=.:tokenizers
noise=objective.noise

part() { # its last step, and what it does otherwise than configs/shipped/bounce.yaml
  "${PYTHON:-.venv/bin/python}" benchmarks/gpu/train_world.py configs/shipped/bounce.yaml --out "$out" --until "$@"
}

part 20000 --set train.steps=100000 --set $noise.shift=2 --set $noise.history_rows=0 --set $noise.independent_rows=0.5
part 27500 --set train.steps=27500 --set $noise.shift=2.5

# Four times as many first chunks a step, and mostly at levels where picture begins to show: without these steps the
# model took colours and materials from captions, and not one direction.
first=(--world bounce:12288 --set train.steps=200000 --set data.clip_s=0.5 --set data.batch_clips=32
  --set $noise.history_rows=0)
part 29500 "${first[@]}" --set $noise.shift=2 --set $noise.independent_rows=0.3 --set optim.lr=0.001
part 35500 "${first[@]}" --set $noise.shift=4 --set $noise.independent_rows=0 --set $noise.distribution=logit_normal \
  --set objective.loss_min_t=0.7

part 40500 --check 128
