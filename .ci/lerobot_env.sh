#!/usr/bin/env bash
# An environment with LeRobot's own reader, for the test that our export loads there. LeRobot wants Python 3.12,
# so it cannot share ours. Prints the interpreter on the last line; run again, it only checks.
# Usage: WORLDMODEL_LEROBOT_PYTHON=$(bash .ci/lerobot_env.sh [FOLDER] | tail -n 1)
set -euo pipefail
cd "$(dirname "$0")/.."
LEROBOT=0.6.1
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/worldmodel/lerobot-$LEROBOT}
check='from lerobot.datasets.lerobot_dataset import LeRobotDataset'
if HF_HUB_OFFLINE=1 "$folder/bin/python" -c "$check" 2>/dev/null; then
  echo "$folder/bin/python"
  exit
fi

uv=$(command -v .venv/bin/uv || command -v uv)
python=
for candidate in python3.12 python3.13 "$HOME"/.pyenv/versions/3.12*/bin/python "$HOME"/.pyenv/versions/3.13*/bin/python; do
  if "$candidate" -c 'import sys; raise SystemExit(sys.version_info[:2] not in ((3, 12), (3, 13)))' 2>/dev/null; then
    python=$(command -v "$candidate")
    break
  fi
done
if [ -z "$python" ]; then
  echo "LeRobot $LEROBOT needs Python 3.12 or 3.13, and neither is here" >&2
  exit 1
fi

# The reader alone: torch of our lock, whose CUDA packages are in uv's cache already, and no triton.
torch=$(grep '^torch==' requirements.lock)
rm -rf "$folder"
"$uv" venv --quiet --python "$python" "$folder"
export VIRTUAL_ENV=$folder
"$uv" pip install --quiet --no-deps "lerobot==$LEROBOT"
"$uv" pip install --quiet --override <(printf '%s\n' "$torch" "triton; python_version < '3'") \
  "$torch" torchvision 'datasets>=4.8,<5' 'pandas>=2,<3' 'numpy>=2,<2.3' 'av>=15,<16' 'draccus==0.11.6' \
  'huggingface-hub>=1.6,<2' 'gymnasium>=1.1.1,<2' jsonlines einops requests safetensors packaging tqdm pillow
HF_HUB_OFFLINE=1 "$folder/bin/python" -c "$check"
echo "$folder/bin/python"
