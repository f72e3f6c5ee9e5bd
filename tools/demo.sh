#!/usr/bin/env bash
# tools/demo.sh [flags of tools/train.py]
# Train and test a norm-free Mask R-CNN on handwritten digits, with the programs that
# also train on COCO, and write a report. It takes minutes on two CPU cores. It writes
# data/digits and work_dirs/demo in the current folder.
set -euo pipefail
tools=$(cd "$(dirname "$0")" && pwd)

config=$tools/../configs/mini/mask_rcnn_r18_fpn_pws_digits_demo.py
work_dir=work_dirs/demo
python=${PYTHON:-python}
# Say now what only the end needs.
"$python" -c 'import plotly, sklearn' ||
    { echo "demo.sh: pip install -e '.[demo]' installs what is missing" >&2; exit 1; }
processes=$("$python" -c 'import torch; print(min(torch.cuda.device_count() or 2, 2))')

[ -d data/digits/annotations ] ||
    "$python" "$tools/dataset_converters/digits_to_coco.py" data/digits

rm -rf "$work_dir"
"$tools/dist_train.sh" "$config" "$processes" --work-dir "$work_dir" "$@"
# Use one process: MMDetection draws only the images of the first process.
"$python" "$tools/test.py" "$config" "$(cat "$work_dir/last_checkpoint")" \
    --work-dir "$work_dir/test" --show-dir images

"$python" - "$work_dir/test" <<'PY'
import glob
import json
import os
import sys

folder = max(glob.glob(f'{sys.argv[1]}/*/'), key=os.path.getmtime)
with open(glob.glob(f'{folder}*.json')[0], encoding='utf-8') as file:
    values = json.load(file)
columns = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m')
print('\n      ' + ''.join(f'{c.replace("mAP", "AP"):>8}' for c in columns))
for name, metric in (('box', 'bbox'), ('mask', 'segm')):
    cells = (f'{values[f"coco/{metric}_{c}"]:8.3f}' for c in columns)
    print(f'{name:6}' + ''.join(cells))
print(f'\nimages of detections, ground truth on the left: {folder}images/')
PY
# Its last line is the path of the report.
"$python" "$tools/analysis_tools/report.py" "$work_dir" -o "$work_dir/report.html" \
    --labels 'norm-free Mask R-CNN'
