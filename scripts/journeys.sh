#!/usr/bin/env bash
# Goes the journeys of docs/journeys in fresh environments that have a wheel and its
# extras alone, each in an empty folder:
#
#   scripts/journeys.sh WHEEL [PYTHON]
#
# Prints the lines of code and the seconds of each. The COCO folder is drawn, and a tiny
# detector trained on it for a few steps, by the checkout's `train`: its boxes are no good.
set -euo pipefail
[ $# -ge 1 ] && [ -f "$1" ] || {
  echo "journeys.sh: expected a wheel, got '${1:-}'; scripts/wheels.sh builds them" >&2
  exit 2
}
wheel=$(realpath "$1")
python=$(realpath --no-symlinks "$(command -v "${2:-python3}")")
cd "$(dirname "$0")/.."
journeys=$PWD/docs/journeys
unset PYTHONPATH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/checkout"
# Neither xla_ops nor dcn_jax, which would hide the wheel's.
git ls-files -z train tests/support | xargs -0 cp --parents --target-directory "$work/checkout"

# install ENVIRONMENT EXTRAS
install() {
  [ -d "$work/$1" ] || "$python" -m venv "$work/$1"
  "$work/$1/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel$2"
}

# go FOLDER PROGRAM [ARGUMENT...], in the environment `library`
go() {
  mkdir -p "$work/$1"
  cd "$work/$1"
  local lines start=$EPOCHREALTIME
  shift
  "$work/library/bin/python" "$journeys/$1" "${@:2}"
  local end=$EPOCHREALTIME
  lines=$("$work/library/bin/python" - "$journeys/$1" <<'PYTHON'
import ast, sys

text = open(sys.argv[1]).read()
_docstring, *rest = ast.parse(text).body
code = text.splitlines()[_docstring.end_lineno:]
print(sum(bool(line.strip()) and not line.strip().startswith("#") for line in code))
PYTHON
)
  awk -v name="$1" -v lines="$lines" -v start="$start" -v end="$end" \
    'BEGIN { printf "%s: %d lines, %.1f s\n", name, lines, end - start }'
}

install library ""
for program in nnx_layer linen_layer derivatives; do
  go "$program" "$program.py"
done

install training "[train]"
cd "$work/checkout"
"$work/training/bin/python" - <<'PYTHON'
from pathlib import Path

from tests.support.coco_folder import write_coco_folder

for split in ("train2017", "val2017"):
    write_coco_folder(Path("coco"), split)
PYTHON
tiny=(
  --config.steps=20 --config.batch_size=2 --config.data.max_side=64 --config.data.max_boxes=8
  "--config.data.canvases=((64,64),)" "--config.data.short_sides=(48,)" --config.data.eval_short_side=48
  "--config.model.backbone.depths=(1,1,1,1)" --config.model.backbone.stem_features=8
  --config.model.backbone.norm=group_norm
  "--config.model.backbone.deform_blocks=(0,0,0,-1)" --config.model.neck.features=8
  "--config.model.rpn.anchor_sizes=(16.0,32.0)" --config.model.rpn.features=8
  --config.model.pool.hidden_features=8 --config.model.box.features=16
)
"$work/training/bin/python" -m train.main --config=train/configs/coco_faster_rcnn.py:dcnv2 \
  --workdir="$work/run" --config.data.data_dir="$work/data" \
  --config.data.options.folder=coco "${tiny[@]}"
picture=$(ls "$work"/checkout/coco/val2017/*.jpg | head -1)

install library "[detect]"
go coco_folder coco_folder.py "$work/run" "$picture"
install library "[export]"
go export export_detector.py "$work/run" "$picture"
go export serve_detector.py "$picture"
