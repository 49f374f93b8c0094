#!/bin/sh
# The README's commands on made-up clips: faces, search, final training, evaluation, prediction.
# `make demo` runs it. Run again, it keeps the clips and faces and makes the search and the training anew.
set -eu
cd "$(dirname "$0")/.."

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run python demo/make_demo_data.py demo/data
clip=$(ls demo/data/test/videos/*.mp4 | head -n 1)
# By the model that comes with the suite, which knows nothing of the demo's spots.
run python predict.py pretrained "$clip"
for split in train valid test; do
    run python pre-processing/extract_faces_from_videos.py demo/data/$split/videos demo/data/$split/faces 5
done
run python train_resnet_raytune_hyperparams.py 4 30 search FaceResNet29_v1.0 --data-dir demo/data --runs-dir demo/runs --overwrite
run python train.py 60 final FaceResNet29_v1.0 true 32 --config demo/runs/search/best_config.json --data-dir demo/data \
    --runs-dir demo/runs --overwrite
run python evaluate.py final --data-dir demo/data --runs-dir demo/runs
run python predict.py final "$clip" --runs-dir demo/runs --annotate demo/runs/annotated --out demo/runs/scores.csv

printf '\nDone. The clips are made up: the figures show that the suite learns, not how well it reads people.\n'
printf '  figures and plots   demo/runs/final/evaluation_test/\n'
printf '  report              demo/runs/final/evaluation_test/report.html\n'
printf '  trials of the search  demo/runs/search/trials.csv\n'
printf '  TensorBoard         .venv/bin/tensorboard --logdir demo/runs --host 127.0.0.1\n'
printf '  annotated picture   demo/runs/annotated/\n'
