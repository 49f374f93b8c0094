"""Packets of clips: whose clocks start anew, whose times are lost, whose format has no display order."""
import io
import struct
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from first_impressions.common.command_line import UserError
from first_impressions.extraction.frames import FrameSettings, extract_frames
from first_impressions.extraction.packets import list_packets
from first_impressions.jobs.target_folder import open_target
from make_media import moving_picture, plain_decode, read_frames, write_clip


def check_pictures(path, number):
    """Compare all pictures of a clip with those of a plain decode, in its order."""
    pictures, found = plain_decode(path), dict(read_frames(path, 1000))
    assert len(pictures) == number and sorted(found) == list(range(number))
    assert all(np.array_equal(found[index], picture) for index, picture in enumerate(pictures))


@pytest.mark.parametrize("second, restarts", [({}, 1), ({"shift": 13}, 1), ({"shift": 13, "options": {"bf": "0"}}, 1),
                                              ({"shift": 1280}, 0), ({"size": (128, 96), "shift": 1280}, 0)])
def test_recordings_joined_one_after_the_other(tmp_path, second, restarts):
    parts = [write_clip(tmp_path / f"{number}.ts", frames=30, key_distance=30, **options)
             for number, options in enumerate(({}, second, {}))][:2 + restarts]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    packets, total = list_packets(path), 30 * len(parts)
    assert np.allclose(packets.seconds, np.arange(total) / 25, atol=0.02)
    if restarts:
        assert packets.notes == ["its clock starts anew 2 times; its parts were taken one after the other"]
        pictures, found = plain_decode(path), dict(read_frames(path, 1000))
        assert len(pictures) == len(found) == total
        assert all(np.array_equal(found[index], picture) for index, picture in enumerate(pictures))
    else:  # the counter of the stream's pieces jumps at the join, as it would if a piece is lost
        assert len(packets.notes) == 1 and packets.notes[0].startswith("data may be missing in 1 of its 60 frames")


def test_lost_and_repeated_times_are_guessed_and_said(tmp_path):
    lost = write_clip(tmp_path / "lost.mkv", frames=50, shift=-1000, options={"bf": "2"},
                      container_options={"avoid_negative_ts": "disabled"})
    packets = list_packets(lost)
    assert "of its 50 frames bear no time" in packets.guess
    assert np.allclose(packets.seconds, np.arange(50) / 25, atol=0.002)
    bare = write_clip(tmp_path / "bare.mpg", frames=25, codec="mpeg2video")
    assert not list_packets(bare).guess
    # Only who asks for times is told by the scripts that they were guessed.
    with open_target(tmp_path / "frames", None):
        for every, problems in ((None, []), (0.5, [packets.guess])):
            assert extract_frames(str(lost), str(tmp_path / "frames"), FrameSettings(2, every=every))[2] == problems


@pytest.mark.parametrize("name, codec", [("b.avi", "libx264"), ("b.asf", "libx264"), ("b.avi", "mpeg4"),
                                         ("b.asf", "mpeg4")])
def test_formats_that_know_only_the_order_of_decoding(tmp_path, name, codec):
    path = write_clip(tmp_path / name, frames=40, codec=codec, options={"bf": "3" if codec == "libx264" else "2"})
    packets = list_packets(path)
    assert not packets.notes and not packets.guess
    assert np.allclose(packets.seconds, np.arange(40) / 25, atol=0.002)
    check_pictures(path, 40)


def test_codec_that_is_unknown_is_not_called_sound(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", frames=3)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(UserError, match="is in a video codec that cannot be decoded here; convert it"):
        list_packets(path)


@pytest.mark.parametrize("turn", [1, 2, 4, 6])
def test_exif_of_the_pictures_of_a_clip_hides_no_turn(tmp_path, turn):
    exif = Image.Exif()
    exif[0x112] = turn
    picture = Image.fromarray(moving_picture(3, 96, 64))
    with av.open(str(tmp_path / "clip.mov"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10, width=96, height=64, pix_fmt="yuvj420p")
        for number in range(3):
            file = io.BytesIO()
            picture.save(file, "JPEG", exif=exif, quality=95)
            packet = av.Packet(file.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 10)
            container.mux(packet)
    expected = np.array(ImageOps.exif_transpose(Image.open(file)))
    for found in dict(read_frames(tmp_path / "clip.mov", 3)).values():
        assert found.shape == expected.shape and np.abs(found[:, :, ::-1].astype(int) - expected).mean() < 2


def test_dropped_pictures_of_avi_are_not_missing(tmp_path):
    path = tmp_path / "dropped.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=96, height=64, pix_fmt="yuv420p")
        for index in (*range(20), *range(26, 40)):
            frame = av.VideoFrame.from_ndarray(cv2.cvtColor(moving_picture(index, 96, 64), cv2.COLOR_BGR2RGB))
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    packets = list_packets(path)
    assert packets.notes == [] and np.allclose(packets.seconds[[0, 19, 20, 33]], [0, 0.76, 1.04, 1.56])
    # The last chunk becomes one without data, as of a picture dropped at the end.
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"idx1") + 8 + 16 * (len(packets.times) - 1 + 6)
    place, size = struct.unpack_from("<II", data, entry + 8)
    place += data.index(b"movi")
    data[place + 4:place + 16] = struct.pack("<I4sI", 0, b"JUNK", size - 8)
    data[entry + 12:entry + 16] = bytes(4)
    (tmp_path / "dropped_at_the_end.avi").write_bytes(data)
    packets = list_packets(tmp_path / "dropped_at_the_end.avi")
    assert packets.notes == [] and len(packets.times) == 33
    for part in (0.8, 0.99):
        path.write_bytes(data[:int(part * len(data))])
        assert list_packets(path).notes[0].startswith("seems cut off")
