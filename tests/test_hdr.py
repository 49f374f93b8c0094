"""Clips in high dynamic range (HLG, PQ) are read as their standard copies."""
import csv
import sys

import av
import cv2
import numpy as np
import pytest

import predict
from first_impressions.common.constants import TRAITS
from first_impressions.extraction.frames import read_frames
from make_media import portrait, write_clip


def hdr_signal(sdr, transfer):
    """Return the R'G'B' signal, float H x W x 3 in [0, 1], of an SDR picture (uint8 RGB) whose white is 203 cd/m2: the
    inverse functions of ITU-R BT.2100-2, written anew here."""
    matrix = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    light = 203 * (sdr / 255.0) ** 2.4 @ matrix.T
    if transfer == "pq":
        power = (light / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    luminance = light @ [0.2627, 0.6780, 0.0593] / 1000
    scene = light / 1000 * np.maximum(luminance, 1e-9)[..., None] ** (1 / 1.2 - 1)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9))
                    + 0.55991073)


def write_hdr(path, sdr, transfer, frames=5):
    """Write a clip of one picture in 10-bit HEVC with BT.2020's primaries and matrix, in limited range."""
    signal = hdr_signal(sdr, transfer)
    luma = signal @ [0.2627, 0.6780, 0.0593]
    planes = [64 + 876 * luma, *(512 + 896 * cv2.resize((signal[..., channel] - luma) / scale, None, fx=0.5, fy=0.5,
                                                        interpolation=cv2.INTER_AREA)
                                 for channel, scale in ((2, 1.8814), (0, 1.4746)))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, width=sdr.shape[1], height=sdr.shape[0],
                                      pix_fmt="yuv420p10le")
        context = stream.codec_context
        context.options = {"x265-params": "log-level=none", "crf": "4", "preset": "ultrafast"}
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = (
            9, {"pq": 16, "hlg": 18}[transfer], 9, 1)
        for _ in range(frames):
            frame = av.VideoFrame(sdr.shape[1], sdr.shape[0], "yuv420p10le")
            for plane, values in zip(frame.planes, planes):
                rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
                rows[:, :plane.width] = np.round(values)
                plane.update(rows if sys.byteorder == "little" else rows.byteswap())
            frame.color_trc, frame.color_primaries, frame.colorspace, frame.color_range = (
                context.color_trc, 9, 9, 1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("transfer", ["hlg", "pq"])
def test_pictures_are_those_of_the_standard_copy(tmp_path, transfer):
    sdr = portrait(256)[:, :, ::-1] // 8 * 7  # below the knee of the curve
    path = write_hdr(tmp_path / f"{transfer}.mp4", sdr, transfer, frames=2)
    for picture in dict(read_frames(path, 2)).values():
        difference = picture[:, :, ::-1].astype(float) - sdr
        assert np.abs(difference).mean() < 4 and abs(difference.mean()) < 1


def test_scores_are_those_of_the_standard_copy(tmp_path, run):
    sdr = portrait(256)[:, :, ::-1]
    write_clip(tmp_path / "sdr.mp4", 5, (256, 256), picture=lambda *_: sdr[:, :, ::-1], options={"crf": "4"})
    for transfer in ("hlg", "pq"):
        write_hdr(tmp_path / f"{transfer}.mp4", sdr, transfer)
    names = ("sdr.mp4", "hlg.mp4", "pq.mp4")
    assert run(predict, "pretrained", *names, "--frames", 2, "--precision", "float32", "--out", "scores.csv")[0] == 0
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["note"] for row in rows] == ["", *(f"high dynamic range ({name}), converted to standard range"
                                                   for name in ("HLG", "PQ"))]
    scores = np.array([[float(row[trait]) for trait in TRAITS] for row in rows])
    assert np.abs(scores - scores[0]).max() < 0.01
