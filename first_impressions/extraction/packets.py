"""Packets of a clip's video stream, listed without decoding: their order, their times, where decoding can start."""
import contextlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from first_impressions.common.command_line import UserError, counted
from first_impressions.common.constants import MAX_PIXELS
from first_impressions.extraction.hdr import HDR_REMARKS
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
# Formats that store the time of decoding only, and the codecs that then do not tell the order of display.
DECODING_TIME_FORMATS, REORDERING_CODECS = {"avi", "asf", "mxf"}, {"h264", "hevc"}
REORDERING_DEPTH = 16   # pictures decoded before one that is shown earlier, at most (max_dec_frame_buffering)

av.logging.set_level(None)


@dataclass(frozen=True)
class Packets:
    """The packets of a clip's video stream in the order of the file.

    times: int64, presentation time stamps, which go on if the clip's clock starts anew; sizes: int64, bytes; clean:
    bool, True if a decoder can start and knows all it needs; indices: int64, display index of the packet's picture,
    -1 for a packet that is not shown; timed: False if time stamps cannot tell pictures apart and pictures must be
    counted; drawable: indices of the pictures to draw from; pixel_aspect: width of a pixel as displayed, in parts of
    its height; notes: sentences on what is wrong with the clip although frames can be drawn from it, also those that
    decoding adds; seconds: float64, of each picture shown, by its index, from the first one, empty if nothing tells;
    guess, hdr: sentences on how the times were guessed and how high dynamic range was read, None if they were not.
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
    guess: str | None
    hdr: str | None

    @property
    def remarks(self) -> list[str]:
        """Sentences on how the clip was read, if that is not as usual."""
        return [remark for remark in (self.guess, self.hdr) if remark]

    @property
    def length(self) -> float:
        """The length of the clip in seconds, 0 if nothing tells: the last picture is shown as long as the mean one."""
        pictures = len(self.seconds)
        return float(self.seconds[-1]) * pictures / (pictures - 1) if pictures > 1 else 0.0


@dataclass
class _Listing:
    """A video stream as read, one entry per packet, and what the header promises: packets (0 if it does not say) and
    length in seconds."""
    formats: set[str]
    codec: str
    promised: int
    seconds: float
    time_base: float
    pixel_aspect: Fraction
    times: list = field(default_factory=list)
    decoding_times: list = field(default_factory=list)
    sizes: list = field(default_factory=list)
    clean: list = field(default_factory=list)
    shown: list = field(default_factory=list)
    corrupt: list = field(default_factory=list)
    renewals: list = field(default_factory=list)  # packets at which the clock starts anew
    changes: bool = False     # the decoder's parameters change on the way
    end: str | None = None    # why reading ended early
    problem: str | None = None
    hdr: str | None = None    # a sentence, if it is in high dynamic range


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
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"no clip that FFmpeg can read ({reason}); replace or remove it") from None
        with container:
            stream = container.streams.best("video")
            cover = av.stream.Disposition.attached_pic  # of a song
            if stream is None or stream.disposition & cover or stream.codec_context is None:
                if any(other.type == "video" and not other.disposition & cover for other in container.streams):
                    raise UserError("is in a video codec that cannot be decoded here; convert it to MP4 (H.264)")
                raise UserError("contains no moving picture (sound only?); replace or remove it")
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
    """Return (pixel_aspect, problem): as the container says or else the codec, 1 if neither does or it cannot be."""
    aspect = stream.sample_aspect_ratio
    if not aspect or aspect < 0:
        return Fraction(1), None
    if not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
        return Fraction(1), (f"its header gives pixels of {aspect.numerator}:{aspect.denominator} (width to height), "
                             "which cannot be; they were taken for square")
    return aspect, None


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


def _is_av1_start(data):
    """Return True for a temporal unit of AV1 that begins with a sequence header and a key frame that is shown at once:
    such a frame resets all references (AV1 Bitstream & Decoding Process Specification, sections 5.3 to 5.9)."""
    position, has_sequence = 0, False
    while position + 1 < len(data):
        header, position = data[position], position + 1 + (data[position] >> 2 & 1)
        kind, length, shift = header >> 3 & 15, 0, 0
        while header & 2 and position < len(data):  # the length, in LEB128
            length |= (data[position] & 127) << shift
            shift, position = shift + 7, position + 1
            if data[position - 1] < 128:
                break
        if kind in (3, 6):  # a frame header; bits: shows an existing frame, two of the kind of frame, is shown
            return has_sequence and position < len(data) and data[position] >> 4 == 1
        has_sequence = has_sequence or kind == 1
        position += length if header & 2 else len(data)
    return False


def _is_clean_key(packet, codec, length_size):
    """Return True for a packet at which every decoder state is reset: an IDR picture with its parameter sets."""
    if codec == "vp9":
        return packet.is_keyframe
    if codec == "av1":
        return packet.is_keyframe and _is_av1_start(bytes(packet))
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
        raise UserError("contains no frame; replace or remove it")
    _continue_clock(listing)
    renewed = listing.renewals and (f"its clock starts anew {counted(len(listing.renewals), 'time')}; its parts were "
                                    "taken one after the other")
    notes = list(filter(None, [listing.end or _missing_part(path, listing), renewed, listing.problem]))
    shown = np.array(listing.shown)
    indices = np.full(len(shown), -1, np.int64)
    seconds, guess = _seconds_of_pictures(listing)
    timed = (listing.codec in TIMED_CODECS and None not in listing.times
             and len(set(_known_times(listing))) == shown.sum()
             and not (listing.codec in REORDERING_CODECS and listing.formats & DECODING_TIME_FORMATS))
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
    drawable = indices[shown & ~np.array(listing.corrupt)].tolist() if timed else range(int(shown.sum()))
    return Packets(times, np.array(listing.sizes), clean, indices, timed, drawable, listing.codec, listing.pixel_aspect,
                   notes, seconds, guess, listing.hdr)


def _read_listing(path):
    with open_clip(path) as (container, stream):
        codec = stream.codec_context.name
        codec = {"libdav1d": "av1", "libvpx-vp9": "vp9"}.get(codec, codec)
        length_size = _nal_length_size(stream, codec)
        # The table of samples is exact, in MP4 without those that an edit list cuts off, in AVI if the file is whole.
        # An AVI's header also counts chunks without data, which stand for dropped pictures.
        formats = set(container.format.name.split(","))
        is_indexed = "mp4" in formats or ("avi" in formats and _has_all_riffs(path))
        promised = sum(entry.size > 0 for entry in stream.index_entries) if is_indexed else stream.frames
        pixel_aspect, problem = _pixel_aspect(stream)
        seconds = (container.duration or 0) / av.time_base
        listing = _Listing(formats, codec, promised, seconds, float(stream.time_base), pixel_aspect, problem=problem,
                           hdr=HDR_REMARKS.get(stream.codec_context.color_trc))
        try:
            for packet in demux(container, stream):
                if packet.has_sidedata("encryption_info"):
                    raise UserError("is encrypted; decrypt, replace or remove it")
                # The times of display that FFmpeg gives for formats without them may repeat.
                listing.times.append(packet.dts if formats & DECODING_TIME_FORMATS else packet.pts)
                listing.decoding_times.append(packet.dts)
                listing.sizes.append(packet.size)
                listing.shown.append(not packet.is_discard)
                listing.corrupt.append(packet.is_corrupt)
                listing.clean.append(_is_clean_key(packet, codec, length_size))
                listing.changes = listing.changes or packet.has_sidedata("new_extradata")
        except av.error.FFmpegError as error:
            listing.end = f"reading stopped after {counted(len(listing.times), 'frame')} ({error.strerror})"
    return listing


def _has_all_riffs(path):
    """Return True if a file holds all that the sizes of its RIFF chunks promise (AVI RIFF File Reference)."""
    position, size = 0, os.path.getsize(path)
    with open(path, "rb") as file:
        while (head := file.read(8))[:4] == b"RIFF":
            position += 8 + int.from_bytes(head[4:], "little")
            file.seek(position)
    return position <= size


def _starts_anew(place, begin, listing):
    """Return True if the clock starts anew at a packet. begin: the first packet of the part before.

    Times of decoding never go back otherwise, but those that FFmpeg guesses (Matroska) may by a little. Times of
    display do, but never before those of more packets than reordering moves.
    """
    stamps, depth = listing.decoding_times, 2
    if "matroska" in listing.formats or None in stamps[max(begin, place - depth):place + 1]:
        stamps, depth = listing.times, REORDERING_DEPTH + 1
    earlier = stamps[max(begin, place - depth):place]
    if None in [*earlier, stamps[place]] or (depth > 2 and len(earlier) < depth):
        return False
    return stamps[place] < min(earlier)


def _continue_clock(listing):
    """Let the time stamps of a part at which the clock starts anew (recordings joined one after the other, without
    rewriting) go on from the part before; note where that is."""
    times, begin = listing.times, 0
    for place in range(1, len(times)):
        if _starts_anew(place, begin, listing):
            listing.renewals.append(place)
            begin = place
    latest = None
    for begin, end in itertools.pairwise([0, *listing.renewals, len(times)]):
        part = sorted({time for time in times[begin:end] if time is not None})
        if not part:
            continue
        step = int(np.median(np.diff(part))) if len(part) > 1 else 1
        shift = 0 if latest is None else latest + step - part[0]
        times[begin:end] = [time if time is None else time + shift for time in times[begin:end]]
        latest = part[-1] + shift
    # The last picture of a part is taken for broken because the counter of the stream's pieces jumps.
    for place in listing.renewals:
        listing.corrupt[max(0, place - 2):place] = [False] * min(2, place)


def _seconds_of_pictures(listing):
    """Return Packets.seconds and None, or a sentence on how they were guessed."""
    places = [place for place, is_shown in enumerate(listing.shown) if is_shown]
    known = np.array([order for order, place in enumerate(places) if listing.times[place] is not None], np.int64)
    times = np.sort(np.array([listing.times[places[order]] for order in known], np.int64))
    total = len(places)
    if not len(times) or len(times) == 1 < total or (np.diff(times) == 0).any():
        if listing.seconds <= 0:
            return np.zeros(0), None
        return np.arange(total) * (listing.seconds / total), (
            "times of its frames are missing or repeat; all were spread evenly over the length in its header")
    if len(known) == total:
        return (times - times[:1]) * listing.time_base, None
    # In Matroska all times before 0 are lost: then the frames without a time are the first ones.
    order = np.arange(total - len(known), total) if known[0] > 0 else known
    step = np.median(np.diff(times) / np.diff(order)) if len(order) > 1 else 1
    filled = np.interp(np.arange(total), order, times)
    filled += step * np.minimum(0, np.arange(total) - order[0]) + step * np.maximum(0, np.arange(total) - order[-1])
    return (filled - filled[0]) * listing.time_base, (
        f"{total - len(known)} of its {counted(total, 'frame')} bear no time; theirs were guessed from the others")


def _known_times(listing):
    return [time for time, is_shown in zip(listing.times, listing.shown) if is_shown and time is not None]


def _missing_part(path, listing):
    """Return a sentence if the clip seems cut off, else None."""
    remedy = "frames were drawn from these; replace the clip if it should be longer"
    total = max(listing.promised, len(listing.times))
    if len(listing.times) < listing.promised or listing.corrupt[-1]:
        return (f"seems cut off: its header promises {counted(total, 'frame')} and "
                f"{sum(listing.shown) - sum(listing.corrupt)} are there whole; {remedy}")
    if any(listing.corrupt):
        return (f"data may be missing in {sum(listing.corrupt)} of its {counted(total, 'frame')}, unless parts were "
                "joined there; the others were used")
    known = _known_times(listing)
    least_seconds = 0.98 * listing.seconds - 0.5
    if not listing.promised and known and (max(known) - min(known)) * listing.time_base < least_seconds:
        # In Matroska the length counts from 0, even if the first picture comes later.
        present = _present_seconds(path, 0.0 if "matroska" in listing.formats else math.inf)
        if present < least_seconds:
            return f"seems cut off: its header promises {listing.seconds:.1f} s and {present:.1f} s are there; {remedy}"
    return None


def _present_seconds(path, first):
    """Return the seconds from `first` or an earlier packet of any stream of a clip to the last one: sound may outlast
    pictures."""
    last = 0.0
    with open_clip(path) as (container, _):
        for other in container.streams:
            other.discard = av.stream.Discard.default
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                heartbeat()
                first = min(first, float(packet.pts * packet.time_base))
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return max(0.0, last - first)
