#!/usr/bin/env bash
#
# Use an installed wheel of pws_mmdet, outside of every checkout: its console scripts, and
# one epoch of two images with a config of the wheel. If MIM is installed, it trains and
# tests. Otherwise the programs are called as it would call them.
#
#   tools/test_wheel.sh PYTHON     PYTHON is the interpreter of the environment

set -euo pipefail

python=$(realpath -s "$1")
export PATH=${python%/*}:$PATH
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

mim=$(python -c 'from importlib.util import find_spec
print(find_spec("pws_mmdet").submodule_search_locations[0])')/.mim
[[ -d $mim ]] || { echo "test_wheel: there is no $mim" >&2; exit 1; }
name=ssd96_vgg16_pws_digits
config=$mim/configs/mini/$name.py
options=(--cfg-options train_cfg.max_epochs=1 train_cfg.val_interval=1
    train_dataloader.batch_size=2 train_dataloader.num_workers=0
    val_dataloader.num_workers=0 test_dataloader.num_workers=0)
checkpoint=work_dirs/$name/epoch_1.pth

pws-summarize --no-macs "$config" | grep 'Norm-free'
if [[ -x ${python%/*}/mim ]]; then
    mim run pws_mmdet digits_to_coco data/digits --num-train 2 --num-val 2
    mim train pws_mmdet "$name.py" --launcher pytorch --gpus 1 "${options[@]}"
    mim test pws_mmdet "$name.py" --checkpoint "$checkpoint" "${options[@]}"
    mim search pws_mmdet --config "$name"
    pws-norm-free mmdet::retinanet/retinanet_r50_fpn_1x_coco.py retinanet.py
    pws-fuse "$config" "$checkpoint" fused
    pws-onnx "$config" "$checkpoint" detector.onnx --no-verify
else
    python "$mim/tools/dataset_converters/digits_to_coco.py" data/digits \
        --num-train 2 --num-val 2
    python "$mim/tools/train.py" "$config" "${options[@]}"
fi
ls -l "$checkpoint"
