"""What a clip holds, read without decoding: the packets of its video stream, their order, where decoding can start."""
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from first_impressions.common.command_line import UserError, counted
from first_impressions.common.constants import MAX_PIXELS
from first_impressions.jobs.worker_pool import heartbeat

# No camera, disc or broadcast has pixels more elongated than this (the widest, squeezed 3D films, have 2:1).
MAX_PIXEL_ASPECT = 8

# Formats that make FFmpeg open further files or addresses that the "clip" names, or that capture from devices.
UNSAFE_FORMATS = frozenset("""
    concat dash data fbdev hls image2 image2pipe imf kmsgrab lavfi rtp rtsp sap sdp tty v4l2 video4linux2
    webm_dash_manifest x11grab""".split())
READ_OPTIONS = {"protocol_whitelist": "none",
                "format_whitelist": ",".join(sorted(av.formats_available - UNSAFE_FORMATS))}

# In these codecs a picture carries the time stamp of its packet and a packet holds one picture, as a rule.
TIMED_CODECS = {"h264", "hevc", "vp8", "vp9", "av1"}

av.logging.set_level(None)


@dataclass(frozen=True)
class Packets:
    """The packets of a clip's video stream in the order of the file.

    times: int64, presentation time stamps; sizes: int64, bytes; clean: bool, True where a decoder can start and knows
    all it needs; indices: int64, display index of the packet's picture, -1 for a packet that is not shown; timed: False
    where time stamps cannot tell pictures apart and pictures must be counted; drawable: indices of the pictures to draw
    from; pixel_aspect: width of a pixel as displayed, in parts of its height; notes: sentences on what is wrong with
    the clip although frames can be drawn from it, also those that decoding adds; seconds: float64, of each picture
    shown, by its index, from the first one; empty where nothing tells.
    """
    times: np.ndarray
    sizes: np.ndarray
    clean: np.ndarray
    indices: np.ndarray
    timed: bool
    drawable: Sequence[int]
    codec: str
    pixel_aspect: Fraction
    notes: list[str]
    seconds: np.ndarray


@dataclass
class _Listing:
    """A video stream as read, one entry a packet, and what the header promises: packets (0 if it does not say) and
    length in seconds."""
    codec: str
    promised: int
    seconds: float
    time_base: float
    pixel_aspect: Fraction
    times: list = field(default_factory=list)
    sizes: list = field(default_factory=list)
    clean: list = field(default_factory=list)
    shown: list = field(default_factory=list)
    corrupt: list = field(default_factory=list)
    changes: bool = False     # the decoder's parameters change on the way
    end: str | None = None    # why reading ended early
    problem: str | None = None


@contextlib.contextmanager
def open_clip(path: str | Path, explode: bool = False,
              ) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    """Open a clip and yield (container, video stream); decoding runs on one thread.

    explode: damage raises an error while decoding, instead of a picture with errors. Raises UserError with FFmpeg's
    reason and OSError for a file that cannot be opened.
    """
    # A file object, not a name: FFmpeg would take a name such as "a:b.mp4" for a protocol.
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise UserError("is empty; replace or remove it")
        try:
            container = av.open(file, metadata_errors="replace", options=READ_OPTIONS, buffer_size=1 << 18)
        except (av.error.FFmpegError, ValueError) as error:
            raise UserError(f"no clip that FFmpeg can read ({_reason(error)}); replace or remove it") from None
        with container:
            stream = container.streams.best("video")
            cover = av.stream.Disposition.attached_pic  # of a song
            if stream is None or stream.disposition & cover or stream.codec_context is None:
                raise UserError("holds no moving picture that FFmpeg can decode (sound only?); replace or remove it")
            width, height = displayed_size(stream.width, stream.height, _pixel_aspect(stream)[0])
            if width * height > MAX_PIXELS:
                raise UserError(f"pictures of {width} x {height} are over the limit of {MAX_PIXELS // 10**6} million "
                                "pixels; scale the clip down")
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = av.stream.Discard.all
            stream.codec_context.thread_count = 1
            on_damage = {"err_detect": "explode"} if explode else {}
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS), **on_damage}
            yield container, stream


def demux(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> Iterator[av.Packet]:
    """Yield the stream's packets that hold data."""
    for packet in container.demux(stream):
        if packet.size:
            heartbeat()
            yield packet


def displayed_size(width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """Return the width and height in square pixels of a picture with other ones: one side grows, none shrinks."""
    if pixel_aspect > 1:
        return round(width * pixel_aspect), height
    return width, round(height / pixel_aspect)


def _pixel_aspect(stream):
    """Return (pixel_aspect, problem): as the container says or else the codec, 1 where neither does or it cannot be."""
    aspect = stream.sample_aspect_ratio
    if not aspect or aspect < 0:
        return Fraction(1), None
    if not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
        return Fraction(1), (f"its header gives pixels of {aspect.numerator}:{aspect.denominator} (width to height), "
                             "which cannot be; they were taken for square")
    return aspect, None


def _reason(error):
    return getattr(error, "strerror", None) or str(error)


# ---------------------------------------------------------------- where decoding can start

def _nal_types(data, codec, length_size):
    """Return the set of NAL unit types in a packet of H.264 or HEVC; length_size 0 means start codes."""
    types, position = set(), 0
    while position < len(data):
        if length_size:
            start = position + length_size
            position = start + int.from_bytes(data[position:start], "big")
        else:
            start = data.find(b"\0\0\1", position) + 3
            if start == 2:
                break
            position = start
        if start < len(data):
            types.add(data[start] & 31 if codec == "h264" else data[start] >> 1 & 63)
    return types


def _nal_length_size(stream, codec):
    """Return the bytes of the length before each NAL unit, 0 for start codes or other codecs."""
    extradata = bytes(stream.codec_context.extradata or b"")
    if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        return (extradata[21] & 3) + 1
    return 0


def _is_clean_key(packet, codec, length_size):
    """Return True for a packet at which every decoder state is reset: an IDR picture with its parameter sets."""
    if codec == "vp9":
        return packet.is_keyframe
    if codec not in ("h264", "hevc") or not packet.is_keyframe:
        return False
    types = _nal_types(bytes(packet), codec, length_size)
    if codec == "h264":
        return 5 in types and (bool(length_size) or {7, 8} <= types)
    return bool(types & {19, 20}) and (bool(length_size) or {32, 33, 34} <= types)


# ---------------------------------------------------------------- listing

def list_packets(path: str | Path) -> Packets:
    """Read all packets of a clip's video stream, without decoding, and return Packets.

    The packets count the pictures; the header's number is often wrong. Raises UserError for a file without pictures and
    OSError for one that cannot be opened.
    """
    listing = _read_listing(path)
    if not any(listing.shown):
        raise UserError("holds no frame; replace or remove it")
    notes = list(filter(None, [listing.end or _missing_part(path, listing), listing.problem]))
    shown = np.array(listing.shown)
    total = int(shown.sum())
    known = _known_times(listing)
    indices = np.full(len(shown), -1, np.int64)
    are_distinct = len(set(known)) == total
    timed = listing.codec in TIMED_CODECS and None not in listing.times and are_distinct
    if timed:
        times = np.array(listing.times, np.int64)
        indices[shown] = np.argsort(np.argsort(times[shown]))
        # A clean start also needs that nothing decoded later is shown earlier, and the reverse.
        latest_before = np.maximum.accumulate(times)
        earliest_after = np.minimum.accumulate(times[::-1])[::-1]
        closed = (times == earliest_after) & (times == latest_before)
        clean = np.array(listing.clean) & closed & (not listing.changes)
        timed = bool(times[0] == earliest_after[0])
    else:
        times = np.zeros(len(shown), np.int64)
        clean = np.zeros(len(shown), bool)
    # A packet that is only half there gives half a picture.
    drawable = indices[shown & ~np.array(listing.corrupt)].tolist() if timed else range(total)
    return Packets(times, np.array(listing.sizes), clean, indices, timed, drawable, listing.codec, listing.pixel_aspect,
                   notes, _seconds_of_pictures(listing, known if are_distinct else None, total))


def _read_listing(path):
    with open_clip(path) as (container, stream):
        codec = stream.codec_context.name
        codec = {"libdav1d": "av1", "libvpx-vp9": "vp9"}.get(codec, codec)
        length_size = _nal_length_size(stream, codec)
        # In MP4 the table of samples is exact, without those that an edit list cuts off.
        is_mp4 = "mp4" in container.format.name.split(",")
        promised = len(stream.index_entries) if is_mp4 else stream.frames
        pixel_aspect, problem = _pixel_aspect(stream)
        seconds = (container.duration or 0) / av.time_base
        listing = _Listing(codec, promised, seconds, float(stream.time_base), pixel_aspect, problem=problem)
        try:
            for packet in demux(container, stream):
                if packet.has_sidedata("encryption_info"):
                    raise UserError("is encrypted; decrypt, replace or remove it")
                listing.times.append(packet.pts)
                listing.sizes.append(packet.size)
                listing.shown.append(not packet.is_discard)
                listing.corrupt.append(packet.is_corrupt)
                listing.clean.append(_is_clean_key(packet, codec, length_size))
                listing.changes = listing.changes or packet.has_sidedata("new_extradata")
        except av.error.FFmpegError as error:
            listing.end = f"reading stopped after {counted(len(listing.times), 'frame')} ({_reason(error)})"
    return listing


def _seconds_of_pictures(listing, known, total):
    """Return Packets.seconds: by the time stamps, or where these do not tell (None) evenly over the length in the
    header."""
    if known is not None:
        return (np.sort(np.array(known, np.int64)) - min(known)) * listing.time_base
    return np.arange(total) * (listing.seconds / total) if listing.seconds > 0 else np.zeros(0)


def _known_times(listing):
    return [time for time, is_shown in zip(listing.times, listing.shown) if is_shown and time is not None]


def _missing_part(path, listing):
    """Return a sentence where the clip seems cut off, else None."""
    remedy = "frames were drawn from these; replace the clip if it should be longer"
    if len(listing.times) < listing.promised or any(listing.corrupt):
        return (f"seems cut off: its header promises {counted(max(listing.promised, len(listing.times)), 'frame')} and "
                f"{sum(listing.shown) - sum(listing.corrupt)} are there whole; {remedy}")
    known = _known_times(listing)
    least_seconds = 0.98 * listing.seconds - 0.5
    if not listing.promised and known and (max(known) - min(known)) * listing.time_base < least_seconds:
        present = _present_seconds(path)
        if present < least_seconds:
            return f"seems cut off: its header promises {listing.seconds:.1f} s and {present:.1f} s are there; {remedy}"
    return None


def _present_seconds(path):
    """Return the seconds from the first to the last packet of any stream of a clip: sound may outlast pictures."""
    first, last = float("inf"), 0.0
    with open_clip(path) as (container, _):
        for other in container.streams:
            other.discard = av.stream.Discard.default
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                heartbeat()
                first = min(first, float(packet.pts * packet.time_base))
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return max(0.0, last - first)
