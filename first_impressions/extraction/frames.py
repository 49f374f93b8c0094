"""Frames drawn from a clip: which ones, and their pictures, the same as a plain decode from the start gives."""
import argparse
import contextlib
import functools
import hashlib
import heapq
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from first_impressions.common.command_line import MOST, UserError, counted, positive_int, seconds_apart, seed_number
from first_impressions.common.constants import JPEG_QUALITY, clip_stem, face_name, frame_name
from first_impressions.extraction.hdr import to_sdr, transfer_of
from first_impressions.extraction.packets import Packets, displayed_size, list_packets, open_clip
from first_impressions.extraction.sources import check_source, encode_jpeg, source_of
from first_impressions.jobs.target_folder import check_name, is_finished, write_file
from first_impressions.jobs.worker_pool import heartbeat

cv2.setNumThreads(1)


def _unlisted_side_data(kind, value):
    member = object.__new__(kind)
    member._name_, member._value_ = f"UNLISTED_{value}", value
    return member


# PyAV refuses all side data of a frame if one entry is of a kind that came to FFmpeg later than PyAV's own list (EXIF,
# spatial video). Such an entry must not hide the display matrix beside it.
av.sidedata.sidedata.Type._missing_ = classmethod(_unlisted_side_data)


@dataclass(frozen=True)
class FrameSettings:
    """Which frames are drawn and how they are written.

    quality: of JPEG, 1 to 100, ignored if frames are not written; every: seconds from one frame to the next, instead of
    random frames, at most number_of_frames of them; piece: seconds; the number of frames is then drawn from each piece
    of a clip that is longer than whole_up_to seconds.
    """
    number_of_frames: int
    seed: int = 0
    quality: int = JPEG_QUALITY
    every: float | None = None
    piece: float | None = None
    whole_up_to: float = 0.0

    @classmethod
    def from_options(cls, args: argparse.Namespace, **others) -> "FrameSettings":
        """Return the options of add_frame_options as FrameSettings. others: fields that these options do not say."""
        number = (MOST if args.every else args.frames) if "frames" in args else args.number_of_frames
        return cls(number, args.seed, every=args.every, **others)

    def noted(self) -> dict:
        """Return what preprocessing.json says of the choice of frames."""
        return {"seed": self.seed, **({"every": self.every} if self.every else {})}

    def choose(self, clip: str, packets: Packets, indices: Iterable[int]) -> set[int]:
        """Return those of the indices that are drawn from a clip. Raises UserError if times are needed and the clip
        tells none."""
        if self.every:
            return frames_every(packets, indices, self.every, self.number_of_frames)
        seconds = packets.seconds
        number = number_of_pieces(packets.length, self)
        if number == 1:
            return choose_frames(clip, indices, self.number_of_frames, self.seed)
        indices = np.array(list(indices))
        pieces = piece_of(seconds[indices], packets.length, number)
        return set().union(*(choose_frames(clip, indices[pieces == piece].tolist(), self.number_of_frames, self.seed)
                             for piece in range(number)))

    def problems(self, packets: Packets) -> list[str]:
        """Return what failures.csv says of a clip: its notes, and if times were asked for that they were guessed."""
        return packets.notes + [packets.guess] * bool(self.every and packets.guess)


def add_frame_options(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """Add the options on which frames of a clip are drawn: the argument N, or with a default the option --frames, then
    --every, which takes at most N frames or stands in place of --frames, and --seed."""
    parser.add_argument("--seed", type=seed_number, default=0, help="another seed draws other frames")
    if default is None:
        parser.add_argument("number_of_frames", metavar="N", type=positive_int, help="frames to draw from each clip")
    else:
        parser = parser.add_mutually_exclusive_group()
        parser.add_argument("--frames", type=positive_int, default=default, help="frames drawn at random from a clip")
    parser.add_argument("--every", type=seconds_apart, metavar="SECONDS", help="take a frame every SECONDS instead of "
                        "random ones" + (", at most N of them" if default is None else ""))


# ---------------------------------------------------------------- choosing

def _place_in_draw(seed, clip, index):
    """Return a frame's place in the draw: it depends on nothing else."""
    return hashlib.blake2b(b"%d:%b:%d" % (seed, os.fsencode(clip), index), digest_size=8).digest()


def choose_frames(clip: str, indices: Iterable[int], number_of_frames: int, seed: int) -> set[int]:
    """Return the frames drawn from a clip: `number_of_frames` of `indices`, or all if there are fewer.

    Fewer frames are a subset of more, and frames that cannot be decoded do not change the choice of the others.
    """
    return set(heapq.nsmallest(number_of_frames, indices, key=functools.partial(_place_in_draw, seed, clip)))


def number_of_pieces(length: float, settings: FrameSettings) -> int:
    """Return the number of equal pieces that a clip of this length in seconds is cut into; 1: it stays whole."""
    if not settings.piece or length <= settings.whole_up_to:
        return 1
    return max(1, round(length / settings.piece))


def piece_of(seconds: np.ndarray, length: float, number: int) -> np.ndarray:
    """Return the piece, int64 from 0, that each moment of a clip lies in, of `number` equal ones."""
    return np.minimum(np.asarray(seconds) * (number / length), number - 1).astype(np.int64)


def frames_every(packets: Packets, indices: Iterable[int], every: float, most: int) -> set[int]:
    """Return those of the indices that are the first at or after 0, every, 2 every ... seconds, at most this many.
    Raises UserError if the clip tells no times."""
    seconds = packets.seconds.tolist()
    if not seconds:
        raise UserError("tells no times of its frames; omit --every")
    chosen, due = set(), 0
    for index in sorted(indices):
        # 0.04 s as a sum of binary fractions may fall a little short.
        if seconds[index] >= due * every - 1e-6 and len(chosen) < most:
            chosen.add(index)
            due = int((seconds[index] + 1e-6) // every) + 1
    return chosen


def earlier_frames(clip: str, chosen: Iterable[int], seed: int) -> dict[int, int | None]:
    """Return for each of the frames drawn the nearest one before it, as displayed, that was drawn before it; None where
    there is none. This one stays the same when more frames are drawn."""
    place = functools.partial(_place_in_draw, seed, clip)
    earlier, candidates = {}, []
    for index in sorted(chosen):
        while candidates and place(candidates[-1]) > place(index):
            candidates.pop()
        earlier[index] = candidates[-1] if candidates else None
        candidates.append(index)
    return earlier


# ---------------------------------------------------------------- decoding

def _to_picture(frame, reformatter, pixel_aspect):
    """Return a decoded frame as it is displayed: uint8 RGB array H x W x 3, C-contiguous, its pixels square, turned and
    mirrored as the clip's display matrix asks. Raises UserError for colours that FFmpeg cannot convert."""
    transfer = transfer_of(frame)
    try:
        picture = reformatter.reformat(frame, format="rgb48le" if transfer else "rgb24").to_ndarray()
    except av.error.FFmpegError as error:
        raise UserError(f"its colours cannot be converted here ({error.strerror}); convert it to MP4 (H.264)") from None
    if transfer:
        picture = to_sdr(picture, transfer)
    size = displayed_size(frame.width, frame.height, pixel_aspect)
    if size != (frame.width, frame.height):
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = struct.unpack("=9i", bytes(matrix))[:5]
        if abs(a) + abs(d) < abs(b) + abs(c):
            # x' = c y, y' = b x: the picture's axes change places.
            picture = picture.transpose(1, 0, 2)
            a, d = c, b
        picture = picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    # PyAV pads the rows of a picture whose width x 3 is not a multiple of its alignment; dlib takes whole rows only.
    return np.ascontiguousarray(picture)


def _decode_everything(path, packets, errors):
    """Yield (index, frame) for every frame that a plain decode from the start gives; damaged packets are skipped, and
    the errors of the decoder are added to a list."""
    index_of = dict(zip(packets.times.tolist(), packets.indices.tolist())) if packets.timed else None
    count, position = 0, -1
    with open_clip(path) as (container, stream):
        packet_iterator = container.demux(stream)
        while True:
            try:
                packet = next(packet_iterator)
            except StopIteration:
                return
            except av.error.FFmpegError:
                packet = None  # the file is damaged here: drain the decoder
            heartbeat()
            position += 1
            if packets.timed and packet is not None and packet.size and position < len(packets.times):
                packet.pts = int(packets.times[position])
            try:
                frames = stream.codec_context.decode(packet if packet is not None and packet.size else None)
            except av.error.EOFError:
                return
            except av.error.FFmpegError as error:
                errors.append(error)
                frames = []
            for frame in frames:
                if index_of is None:
                    yield count, frame
                elif index_of.get(frame.pts, -1) >= 0:
                    yield index_of[frame.pts], frame
                count += 1
            if packet is None or not packet.size:
                return


def decode_wanted(path: str | Path, packets: Packets, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (index, frame) for the wanted frames, decoding only what is needed for pictures identical to a full decode.

    Decoding starts at the last clean key frame before a wanted frame, leaves out pictures that no other picture needs,
    and stops at the last wanted frame before the next clean key frame. Ends early, without an error, as soon as
    anything is not as listed in packets: the caller then decodes everything. Raises av.error.FFmpegError for damage.
    """
    positions = np.flatnonzero(np.isin(packets.indices, list(wanted)))
    starts = np.flatnonzero(packets.clean)
    if not len(starts) or starts[0] != 0:
        starts = np.concatenate([[0], starts])
    firsts = starts[np.searchsorted(starts, positions, side="right") - 1]
    lasts = {int(first): int(positions[firsts == first].max()) for first in np.unique(firsts)}
    index_of = {int(packets.times[position]): int(packets.indices[position]) for position in positions}
    wanted_positions = set(positions.tolist())
    end = max(lasts.values())
    last = -1
    with open_clip(path, explode=True) as (container, stream):
        decoder = stream.codec_context
        for position, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
            heartbeat()
            if position > end or packet.size != packets.sizes[position]:
                return
            packet.pts = int(packets.times[position])
            if position in lasts:
                last = lasts[position]
            if position > last:
                continue
            if decoder.name == "h264":
                decoder.skip_frame = "DEFAULT" if position in wanted_positions else "NONREF"
            frames = decoder.decode(packet)
            if position == last:
                frames += decoder.decode(None)
                decoder.flush_buffers()
            for frame in frames:
                if frame.is_corrupt:
                    return
                if frame.pts in index_of:
                    yield index_of[frame.pts], frame


def read_chosen(path: str | Path, packets: Packets, settings: FrameSettings,
                pick: Callable[[set[int]], set[int]] = set) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, picture) for those of the frames drawn that pick(frames drawn) returns. It is called again with the
    frames that replace others.

    index: int, counted from 0 in display order; picture: uint8 RGB array H x W x 3, C-contiguous. A frame that cannot
    be decoded is replaced by the next one of the draw. All others come in the order of display, those that replace one
    after them. packets.notes then says how many could be decoded. Raises UserError if none could.
    """
    def choose(indices):
        return settings.choose(clip_stem(path), packets, indices)

    def to_picture(frame):
        return _to_picture(frame, reformatter, packets.pixel_aspect)

    reformatter = av.video.reformatter.VideoReformatter()
    drawn = choose(packets.drawable)
    wanted = pick(drawn)
    if wanted and packets.timed:
        order = sorted(wanted, reverse=True)
        try:
            for index, frame in decode_wanted(path, packets, wanted):
                if index != order.pop():
                    break  # one was left out: the plain decode below takes up here
                wanted.remove(index)
                yield index, to_picture(frame)
        except av.error.FFmpegError:
            pass  # damaged somewhere: the plain decode below takes what can be had
    if not wanted:
        return
    readable, errors, is_noted = set(), [], False
    for index, frame in _decode_everything(path, packets, errors):
        readable.add(index)
        if index in wanted:
            wanted.remove(index)
            if frame.is_corrupt and not is_noted:
                packets.notes.append("its data are damaged, which may show in some of its frames")
                is_noted = True
            yield index, to_picture(frame)
            if not wanted:
                return
    if packets.timed:
        readable.intersection_update(packets.drawable)
    total = counted(len(packets.drawable), "frame")
    if not readable:
        raise UserError(f"none of its {total} could be decoded; replace or remove it")
    # Two packets may hold the fields of one picture: without an error nothing is missing then.
    if packets.timed or errors:
        packets.notes.append(f"only {len(readable)} of {total} could be decoded; frames were drawn from these")
    instead = pick(choose(readable) - drawn)
    if instead:
        for index, frame in _decode_everything(path, packets, errors):
            if index in instead:
                instead.remove(index)
                yield index, to_picture(frame)
                if not instead:
                    return


# ---------------------------------------------------------------- writing

@contextlib.contextmanager
def watched_clip(path: str, target: str) -> Iterator[list[str]]:
    """Yield a list for the names of the files that are made of a clip in the target folder. Raises UserError and
    removes these files if the clip was changed meanwhile: they were made of a part of it."""
    before = os.stat(path)
    names = []
    yield names
    after = os.stat(path)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        for name in names:
            os.unlink(os.path.join(target, name))
        raise UserError("was changed while it was read; run again when it is complete")


def check_clip_name(path: str, packets: Packets, target: str) -> None:
    """Raise UserError if the names of a clip's frames and faces would be too long for the target's disk."""
    longest = Path(frame_name(clip_stem(path), max(packets.drawable, default=0))).stem
    check_name(target, face_name(longest))


def extract_frames(path: str, frame_dir: str, settings: FrameSettings) -> tuple[int, int, list[str]]:
    """Write the frames drawn from one clip to frame_dir; return (made, present, problems) as Job.run asks.

    Call it inside target_folder.open_target. Raises UserError for a clip that cannot be read, OSError for a full disk.
    """
    clip, source = clip_stem(path), source_of(path)
    present = set()

    def missing(chosen):
        present.update(i for i in chosen if is_finished(os.path.join(frame_dir, frame_name(clip, i))))
        return chosen - present

    with watched_clip(path, frame_dir) as made:
        packets = list_packets(path)
        check_clip_name(path, packets, frame_dir)
        missing(settings.choose(clip, packets, packets.drawable))
        if present:
            check_source(os.path.join(frame_dir, frame_name(clip, min(present))), source)
        for index, picture in read_chosen(path, packets, settings, missing):
            write_file(frame_dir, frame_name(clip, index), encode_jpeg(picture, settings.quality, source))
            made.append(frame_name(clip, index))
            heartbeat()
    return len(made), len(present), settings.problems(packets)
