"""Small clips and pictures for the tests of the pre-processing, written with PyAV, OpenCV and scikit-image."""
import contextlib
from dataclasses import dataclass, field
from fractions import Fraction

import av
import cv2
import numpy as np
import skimage.data

from first_impressions.extraction.frames import FrameSettings, read_chosen
from first_impressions.extraction.packets import list_packets


def moving_picture(index, width, height):
    """Return a BGR uint8 picture that differs from frame to frame: gradients, a moving square, a little noise."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    picture = np.stack([x * 2 + np.uint8(index * 3 % 256), y * 2 - np.uint8(index % 256), x // 2 + y // 2], axis=-1)
    left = (index * 5) % max(1, width - 12)
    picture[height // 3:height // 3 + 12, left:left + 12] = (20, 240, 200)
    return picture // 2 + np.random.default_rng(index).integers(0, 12, picture.shape, dtype=np.uint8)


@dataclass
class Encoding:
    """How a clip is written.

    times: presentation times in 1/1000 s, default 25 frames/s; shift: moves all time stamps by this many 1/1000 s,
    which cuts pictures before 0 off by an edit list; pixel_aspect: width of a pixel in parts of its height.
    """
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    options: dict = field(default_factory=dict)
    key_distance: int = 12
    times: list[int] | None = None
    container_format: str | None = None
    container_options: dict = field(default_factory=dict)
    shift: int = 0
    pixel_aspect: Fraction | None = None


def write_clip(path, frames=60, size=(96, 64), picture=moving_picture, **encoding):
    """Write a clip without sound and return its path. encoding: fields of Encoding."""
    encoding = Encoding(**encoding)
    with av.open(str(path), "w", format=encoding.container_format, options=encoding.container_options) as container:
        stream = container.add_stream(encoding.codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = encoding.pixel_format
        stream.gop_size = encoding.key_distance
        stream.codec_context.thread_count = 1
        stream.codec_context.options = encoding.options
        if encoding.pixel_aspect:
            stream.codec_context.sample_aspect_ratio = encoding.pixel_aspect
        if encoding.times is not None or encoding.shift:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="bgr24")
            frame = frame.reformat(format=encoding.pixel_format)
            if encoding.times is not None or encoding.shift:
                frame.pts = encoding.times[index] if encoding.times is not None else index * 40
                frame.time_base = stream.codec_context.time_base
            for packet in stream.encode(frame):
                container.mux(_shifted(packet, encoding.shift))
        for packet in stream.encode(None):
            container.mux(_shifted(packet, encoding.shift))
    return path


def _shifted(packet, shift):
    if shift:
        packet.pts += shift
        packet.dts += shift
    return packet


def rotate_clip(path, degrees):
    """Write a rotation into the display matrix of an MP4 clip's track header (16.16 fixed point), in place."""
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = np.array([cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    plain = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    data = path.read_bytes()
    place = data.index(plain, data.index(b"tkhd"))
    path.write_bytes(data[:place] + matrix + data[place + len(matrix):])
    return path


def set_pixel_aspect(path, width, height):
    """Write the shape of the pixels into the header of an MP4 clip that has one (pasp), in place."""
    data = path.read_bytes()
    place = data.index(b"pasp") + 4
    path.write_bytes(data[:place] + np.array([width, height], ">i4").tobytes() + data[place + 8:])
    return path


def portrait(size=512):
    """Return the head of scikit-image's astronaut (public domain) as BGR uint8 array size x size x 3; the face takes a
    good third of the width."""
    head = np.ascontiguousarray(skimage.data.astronaut()[:280, 80:360, ::-1])
    return cv2.resize(head, (size, size), interpolation=cv2.INTER_AREA if size < 280 else cv2.INTER_CUBIC)


def plain_decode(path):
    """Return all frames of a clip as BGR uint8 arrays, decoded from the start, without those that are damaged."""
    pictures = []
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for packet in container.demux(video=0):
            with contextlib.suppress(av.error.FFmpegError):
                pictures += [frame.to_ndarray(format="rgb24")[:, :, ::-1] for frame in packet.decode()]
    return pictures


def read_frames(path, number_of_frames):
    """Yield (index, BGR picture) for the frames drawn from a clip, as extract_frames_from_videos.py reads them."""
    for index, picture in read_chosen(path, list_packets(path), FrameSettings(number_of_frames)):
        yield index, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
