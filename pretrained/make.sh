#!/bin/sh
# Makes this folder's model.pt and MODEL_CARD.md again, on the CPU:
#
#     sh pretrained/make.sh portraits_train.zip portraits_train_more.zip annotation_training.pkl WORK_DIR
#
# The zips hold pictures of ChaLearn's training clips, named like extracted frames. See benchmarks/pretrained.py.
set -e
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
exec python "$(dirname "$0")/../benchmarks/pretrained.py" "$@"
