"""Packets of a clip's video stream, listed without decoding: their order, their times, where decoding can start."""
import contextlib
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
NO_TIME = np.iinfo(np.int64).min    # FFmpeg's, too
# A packet as listed: its time of display in all formats but those of DECODING_TIME_FORMATS.
ROW = np.dtype([("time", np.int64), ("decoding_time", np.int64), ("size", np.int64), ("shown", bool),
                ("corrupt", bool), ("clean", bool)])

av.logging.set_level(None)


@dataclass
class Packets:
    """The packets of a clip's video stream in the order of the file.

    times: int64, presentation time stamps, which go on if the clip's clock starts anew; sizes: int64, bytes; clean:
    bool, True if a decoder can start and knows all it needs; indices: int64, display index of the packet's picture,
    -1 for a packet that is not shown; timed: False if time stamps cannot tell pictures apart and pictures must be
    counted; drawable: indices of the pictures to draw from, which decoding reduces; pixel_aspect: width of a pixel as
    displayed, in parts of its height; notes: sentences on what is wrong with the clip although frames can be drawn from
    it, also those that decoding adds; seconds: float64, of each picture shown, by its index, from the first one, empty
    if nothing tells; guess, hdr: sentences on how the times were guessed and how high dynamic range was read, None if
    they were not.
    """
    times: np.ndarray
    sizes: np.ndarray
    clean: np.ndarray
    indices: np.ndarray
    timed: bool
    drawable: Sequence[int]
    pixel_aspect: Fraction
    notes: list[str]
    seconds: np.ndarray
    guess: str | None
    hdr: str | None

    @property
    def length(self) -> float:
        """The length of the clip in seconds, 0 if nothing tells: the last picture is shown as long as the mean one."""
        pictures = len(self.seconds)
        return float(self.seconds[-1]) * pictures / (pictures - 1) if pictures > 1 else 0.0


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


def list_packets(path: str | Path) -> Packets:
    """Read all packets of a clip's video stream, without decoding, and return Packets.

    The packets count the pictures; the header's number is often wrong. Raises UserError for a file without pictures and
    OSError for one that cannot be opened.
    """
    with open_clip(path) as (container, stream):
        formats, codec = set(container.format.name.split(",")), stream.codec_context.codec.canonical_name
        # The table of samples is exact, in MP4 without those that an edit list cuts off, in AVI if the file is whole.
        # An AVI's header also counts chunks without data, which stand for dropped pictures.
        is_indexed = "mp4" in formats or ("avi" in formats and _has_all_riffs(path))
        promised = sum(entry.size > 0 for entry in stream.index_entries) if is_indexed else stream.frames
        length, time_base = (container.duration or 0) / av.time_base, float(stream.time_base)
        pixel_aspect, odd_pixels = _pixel_aspect(stream)
        hdr = HDR_REMARKS.get(stream.codec_context.color_trc)
        rows, present, end = _read_rows(container, stream, formats, is_whole=not promised)
    times, shown = rows["time"], rows["shown"]
    if not shown.any():
        raise UserError("contains no frame; replace or remove it")
    restarts = _continue_clock(rows, "matroska" in formats)
    notes = [end or _missing_part(rows, promised, length, present, time_base), restarts and (
        f"its clock starts anew {counted(restarts, 'time')}; its parts were taken one after the other"), odd_pixels]
    seconds, guess = _seconds_of_pictures(times[shown], length, time_base)
    indices, clean = np.full(len(rows), -1, np.int64), np.zeros(len(rows), bool)
    timed = (codec in TIMED_CODECS and NO_TIME not in times and len(np.unique(times[shown])) == shown.sum()
             and not (codec in REORDERING_CODECS and formats & DECODING_TIME_FORMATS))
    if timed:
        indices[shown] = np.argsort(np.argsort(times[shown]))
        # A clean start also needs that nothing decoded later is shown earlier, and the reverse.
        latest_before = np.maximum.accumulate(times)
        earliest_after = np.minimum.accumulate(times[::-1])[::-1]
        clean = rows["clean"] & (times == earliest_after) & (times == latest_before)
        timed = bool(times[0] == earliest_after[0])
    # A packet that is only half there gives half a picture.
    drawable = indices[shown & ~rows["corrupt"]].tolist() if timed else range(int(shown.sum()))
    return Packets(times, rows["size"], clean, indices, timed, drawable, pixel_aspect, list(filter(None, notes)),
                   seconds, guess, hdr)


def _read_rows(container, stream, formats, is_whole):
    """Return (rows, seconds, end): an array of ROW; from the first packet of any stream to the end of the last one,
    since sound may outlast pictures, if is_whole, else 0; and why reading ended early."""
    codec, rows, changes, end = stream.codec_context.codec.canonical_name, [], False, None
    # In Matroska the length counts from 0, even if the first picture comes later.
    first, last = 0.0 if "matroska" in formats else math.inf, 0.0
    for other in container.streams if is_whole else ():
        other.discard = av.stream.Discard.default
    try:
        for packet in container.demux():
            if not packet.size:
                continue
            heartbeat()
            if is_whole and packet.pts is not None:
                first = min(first, float(packet.pts * packet.time_base))
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            if packet.has_sidedata("encryption_info"):
                raise UserError("is encrypted; decrypt, replace or remove it")
            changes = changes or packet.has_sidedata("new_extradata")
            # The times of display that FFmpeg gives for formats without them may repeat.
            times = packet.dts if formats & DECODING_TIME_FORMATS else packet.pts, packet.dts
            rows.append((*(NO_TIME if time is None else time for time in times), packet.size, not packet.is_discard,
                         packet.is_corrupt, _is_clean_key(packet, codec)))
    except av.error.FFmpegError as error:
        end = f"reading stopped after {counted(len(rows), 'frame')} ({error.strerror})"
    rows = np.array(rows, ROW)
    rows["clean"] &= not changes
    return rows, max(0.0, last - first), end


def _is_clean_key(packet, codec):
    """Return True for a packet at which every decoder state is reset, in H.264 and HEVC an IDR picture with its
    parameter sets; decoders of AV1 and VP9 refuse pictures whose references are missing. Uses the packet up."""
    if not packet.is_keyframe or codec not in REORDERING_CODECS:
        return packet.is_keyframe and codec in ("av1", "vp9")
    try:
        with_parameters = av.BitStreamFilterContext(f"{codec}_mp4toannexb", packet.stream).filter(packet)
    except av.error.FFmpegError:
        return False
    units = [unit[0] for unit in re.findall(b"\0\0\1(.)", b"".join(map(bytes, with_parameters)), re.DOTALL)]
    if codec == "h264":
        return {5, 7, 8} <= {unit & 31 for unit in units}
    types = {unit >> 1 & 63 for unit in units}
    return {32, 33, 34} <= types and not types.isdisjoint({19, 20})


def _has_all_riffs(path):
    """Return True if a file holds all that the sizes of its RIFF chunks promise (AVI RIFF File Reference)."""
    position, size = 0, os.path.getsize(path)
    with open(path, "rb") as file:
        while (head := file.read(8))[:4] == b"RIFF":
            position += 8 + int.from_bytes(head[4:], "little")
            file.seek(position)
    return position <= size


def _continue_clock(rows, is_matroska):
    """Let the time stamps of a part at which the clock starts anew (recordings joined one after the other, without
    rewriting) go on from the part before; return how often that is.

    Times of decoding never go back otherwise, but those that FFmpeg guesses (Matroska) may by a little. Times of
    display do, but never before those of more packets than reordering moves.
    """
    times, decoding_times, begins = rows["time"].tolist(), rows["decoding_time"].tolist(), [0]
    for place in range(1, len(rows)):
        stamps = decoding_times[max(begins[-1], place - 2):place + 1]
        if is_matroska or NO_TIME in stamps:
            stamps = times[max(begins[-1], place - REORDERING_DEPTH - 1):place + 1]
            if len(stamps) < REORDERING_DEPTH + 2:
                continue
        if NO_TIME not in stamps and stamps[-1] < min(stamps[:-1]):
            begins.append(place)
    latest = None
    for begin, end in itertools.pairwise([*begins, len(rows)]):
        part = rows["time"][begin:end]
        known = np.unique(part[part != NO_TIME])
        if len(known):
            step = int(np.median(np.diff(known))) if len(known) > 1 else 1
            shift = 0 if latest is None else latest + step - int(known[0])
            part[part != NO_TIME] += shift
            latest = int(known[-1]) + shift
    # The last picture of a part is taken for broken because the counter of the stream's pieces jumps.
    for begin in begins[1:]:
        rows["corrupt"][max(0, begin - 2):begin] = False
    return len(begins) - 1


def _seconds_of_pictures(times, length, time_base):
    """Return Packets.seconds from the times of the packets that are shown, and None, or a sentence on how they were
    guessed."""
    total, order = len(times), np.flatnonzero(times != NO_TIME)
    times = np.sort(times[order])
    if not len(times) or len(times) == 1 < total or (np.diff(times) == 0).any():
        if length <= 0:
            return np.zeros(0), None
        return np.arange(total) * (length / total), (
            "times of its frames are missing or repeat; all were spread evenly over the length in its header")
    if len(times) == total:
        return (times - times[0]) * time_base, None
    # In Matroska all times before 0 are lost: then the frames without a time are the first ones.
    order = np.arange(total - len(times), total) if order[0] > 0 else order
    step = np.median(np.diff(times) / np.diff(order)) if len(order) > 1 else 1
    filled = np.interp(np.arange(total), order, times)
    filled += step * np.minimum(0, np.arange(total) - order[0]) + step * np.maximum(0, np.arange(total) - order[-1])
    return (filled - filled[0]) * time_base, (
        f"{total - len(times)} of its {counted(total, 'frame')} bear no time; theirs were guessed from the others")


def _missing_part(rows, promised, length, present, time_base):
    """Return a sentence if the clip seems cut off, else None."""
    remedy = "frames were drawn from these; replace the clip if it should be longer"
    total, corrupt = counted(max(promised, len(rows)), "frame"), int(rows["corrupt"].sum())
    if len(rows) < promised or rows["corrupt"][-1]:
        return (f"seems cut off: its header promises {total} and {rows['shown'].sum() - corrupt} are there whole; "
                f"{remedy}")
    if corrupt:
        return f"data may be missing in {corrupt} of its {total}, unless parts were joined there; the others were used"
    known = rows["time"][rows["shown"] & (rows["time"] != NO_TIME)]
    pictures = (int(known.max()) - int(known.min())) * time_base if len(known) else math.inf
    if not promised and max(pictures, present) < 0.98 * length - 0.5:
        return f"seems cut off: its header promises {length:.1f} s and {present:.1f} s are there; {remedy}"
    return None
