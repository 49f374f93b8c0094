"""Clips in high dynamic range (HLG, PQ) are read as their standard copies."""
import csv

import numpy as np
import pytest

import predict
from first_impressions.common.constants import TRAITS
from gallery import write_hdr
from make_media import portrait, read_frames, write_clip


@pytest.mark.parametrize("transfer", ["hlg", "pq"])
def test_pictures_are_those_of_the_standard_copy(tmp_path, transfer):
    sdr = portrait(256)[:, :, ::-1] // 8 * 7  # below the knee of the curve
    path = write_hdr(tmp_path / f"{transfer}.mp4", transfer, [sdr, sdr])
    for picture in dict(read_frames(path, 2)).values():
        difference = picture[:, :, ::-1].astype(float) - sdr
        assert np.abs(difference).mean() < 4 and abs(difference.mean()) < 1


def test_scores_are_those_of_the_standard_copy(tmp_path, run):
    sdr = portrait(256)[:, :, ::-1]
    write_clip(tmp_path / "sdr.mp4", 5, (256, 256), picture=lambda *_: sdr[:, :, ::-1], options={"crf": "4"})
    for transfer in ("hlg", "pq"):
        write_hdr(tmp_path / f"{transfer}.mp4", transfer, 5 * [sdr])
    names = ("sdr.mp4", "hlg.mp4", "pq.mp4")
    assert run(predict, "pretrained", *names, "--frames", 2, "--precision", "float32", "--out", "scores.csv")[0] == 0
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["note"] for row in rows] == ["", *(f"high dynamic range ({name}), converted to standard range"
                                                   for name in ("HLG", "PQ"))]
    scores = np.array([[float(row[trait]) for trait in TRAITS] for row in rows])
    assert np.abs(scores - scores[0]).max() < 0.01
