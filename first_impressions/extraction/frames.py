"""Frames drawn from a clip: which ones, and their pictures, the same as a plain decode from the start gives."""
import argparse
import contextlib
import functools
import hashlib
import heapq
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from first_impressions.common.command_line import MOST, UserError, counted, positive_int, seconds_apart, seed_number
from first_impressions.common.constants import JPEG_QUALITY, clip_stem, face_name, frame_name
from first_impressions.extraction.hdr import HDR_REMARKS, to_sdr
from first_impressions.extraction.packets import Packets, displayed_size, list_packets, open_clip
from first_impressions.extraction.sources import check_source, encode_jpeg, source_of
from first_impressions.jobs.target_folder import check_name, is_finished, write_file
from first_impressions.jobs.worker_pool import heartbeat

cv2.setNumThreads(1)
# PyAV refuses all side data of a frame if one entry is of a kind that came to FFmpeg later than PyAV's own list (EXIF,
# spatial video). Such an entry, taken for one that nobody asks for, must not hide the display matrix beside it.
av.sidedata.sidedata.Type._missing_ = classmethod(lambda kind, _: kind.PANSCAN)


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

    def choose(self, clip: str, packets: Packets) -> set[int]:
        """Return the frames drawn from a clip. Raises UserError if times are needed and the clip tells none."""
        if self.every:
            return frames_every(packets, self.every, self.number_of_frames)
        number = number_of_pieces(packets.length, self)
        if number == 1:
            return choose_frames(clip, packets.drawable, self.number_of_frames, self.seed)
        indices = np.array(packets.drawable)
        pieces = piece_of(packets.seconds[indices], packets.length, number)
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


def frames_every(packets: Packets, every: float, most: int) -> set[int]:
    """Return the first frames at or after 0, every, 2 every ... seconds, at most this many. Raises UserError if the
    clip tells no times."""
    if not len(packets.seconds):
        raise UserError("tells no times of its frames; omit --every")
    indices = np.sort(np.array(packets.drawable, np.int64))
    # 0.04 s as a sum of binary fractions may fall a little short.
    _, firsts = np.unique((packets.seconds[indices] + 1e-6) // every, return_index=True)
    return set(indices[firsts[:most]].tolist())


def earlier_frames(clip: str, chosen: Iterable[int], seed: int) -> dict[int, list[int]]:
    """Return for each of the frames drawn the nearest one before it, as displayed, that was drawn before it, that one's
    too, and so on. They stay the same when more frames are drawn."""
    place = functools.partial(_place_in_draw, seed, clip)
    earlier, candidates = {}, []
    for index in sorted(chosen):
        while candidates and place(candidates[-1]) > place(index):
            candidates.pop()
        earlier[index] = candidates[::-1]
        candidates.append(index)
    return earlier


# ---------------------------------------------------------------- decoding

def _to_picture(frame, reformatter, pixel_aspect):
    """Return a decoded frame as it is displayed: uint8 RGB array H x W x 3, C-contiguous, its pixels square, turned and
    mirrored as the clip's display matrix asks. Raises UserError for colours that FFmpeg cannot convert."""
    is_hdr = frame.color_trc in HDR_REMARKS
    try:
        picture = reformatter.reformat(frame, format="rgb48le" if is_hdr else "rgb24").to_ndarray()
    except av.error.FFmpegError as error:
        raise UserError(f"its colours cannot be converted here ({error.strerror}); convert it to MP4 (H.264)") from None
    if is_hdr:
        picture = to_sdr(picture, frame.color_trc)
    size = displayed_size(frame.width, frame.height, pixel_aspect)
    if size != (frame.width, frame.height):
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        if abs(a) + abs(d) < abs(b) + abs(c):
            # x' = c y, y' = b x: the picture's axes change places.
            picture = picture.transpose(1, 0, 2)
            a, d = c, b
        picture = picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    # PyAV pads the rows of a picture whose width x 3 is not a multiple of its alignment; dlib takes whole rows only.
    return np.ascontiguousarray(picture)


def _packets_to_the_end(container, stream):
    """Yield the stream's packets that hold data, up to where the file is damaged; then None, which drains a decoder."""
    with contextlib.suppress(av.error.FFmpegError):
        for packet in container.demux(stream):
            if packet.size:
                heartbeat()
                yield packet
    yield None


def _decode_everything(path, packets, errors):
    """Yield (index, frame) for every frame that a plain decode from the start gives; damaged packets are skipped, and
    the errors of the decoder are added to a list."""
    times = packets.times.tolist() if packets.timed else itertools.repeat(None)
    index_of, count = dict(zip(times, packets.indices.tolist())), 0
    with open_clip(path) as (container, stream):
        for time, packet in zip(itertools.chain(times, [None]), _packets_to_the_end(container, stream)):
            if packet and time is not None:
                packet.pts = time
            try:
                frames = stream.codec_context.decode(packet)
            except av.error.EOFError:
                return
            except av.error.FFmpegError as error:
                errors.append(error)
                continue
            for frame in frames:
                index = index_of.get(frame.pts, -1) if packets.timed else count
                count += 1
                if index >= 0:
                    yield index, frame


def decode_wanted(path: str | Path, packets: Packets, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (index, frame) for the wanted frames, decoding only what is needed for pictures identical to a full decode.

    Decoding starts at the last clean key frame before a wanted frame, leaves out pictures that no other picture needs,
    and stops at the last wanted frame before the next clean key frame. Ends early, without an error, as soon as
    anything is not as listed in packets: the caller then decodes everything. Raises av.error.FFmpegError for damage.
    """
    positions = np.flatnonzero(np.isin(packets.indices, list(wanted)))
    starts = np.union1d(0, np.flatnonzero(packets.clean))
    starts_of_wanted = starts[np.searchsorted(starts, positions, side="right") - 1]
    last_from = dict(zip(starts_of_wanted.tolist(), positions.tolist()))  # positions rise: the last one stays
    index_of = dict(zip(packets.times[positions].tolist(), packets.indices[positions].tolist()))
    last = -1
    with open_clip(path, explode=True) as (container, stream):
        decoder = stream.codec_context
        for position, packet in enumerate(_packets_to_the_end(container, stream)):
            if packet is None or position > positions[-1] or packet.size != packets.sizes[position]:
                return
            packet.pts = int(packets.times[position])
            last = last_from.get(position, last)
            if position > last:
                continue
            if decoder.name == "h264":
                decoder.skip_frame = "DEFAULT" if packet.pts in index_of else "NONREF"
            frames = decoder.decode(packet)
            if position == last:
                frames += decoder.decode(None)
                decoder.flush_buffers()
            for frame in frames:
                if frame.is_corrupt:
                    return
                if frame.pts in index_of:
                    yield index_of[frame.pts], frame


def _decode(path, packets, wanted):
    """Yield (index, frame) for the wanted frames, as read_frames does."""
    order = sorted(wanted)
    if order and packets.timed:
        with contextlib.suppress(av.error.FFmpegError):  # of damage: the plain decode takes what can be had
            for index, frame in decode_wanted(path, packets, wanted):
                if index != order[0]:
                    break  # one was left out
                del order[0]
                yield index, frame
    readable, errors, missing = set(), [], set(order)
    for index, frame in _decode_everything(path, packets, errors) if missing else ():
        readable.add(index)
        if index in missing:
            missing.remove(index)
            note = "its data are damaged, which may show in some of its frames"
            if frame.is_corrupt and note not in packets.notes:
                packets.notes.append(note)
            yield index, frame
            if not missing:
                return
    if missing:
        total = counted(len(packets.drawable), "frame")
        packets.drawable = sorted(readable.intersection(packets.drawable) if packets.timed else readable)
        left = len(packets.drawable)
        if not left:
            raise UserError(f"none of its {total} could be decoded; replace or remove it")
        # Two packets may hold the fields of one picture: without an error nothing is missing then.
        if packets.timed or errors:
            packets.notes.append(f"only {left} of {total} could be decoded; frames were drawn from these")


def read_frames(path: str | Path, packets: Packets, wanted: set[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, picture) for the wanted frames, in the order of display: index, int, counted from 0; picture, uint8
    RGB array H x W x 3, C-contiguous.

    Those that cannot be decoded are taken out of packets.drawable, and packets.notes says how many are left. Raises
    UserError if none is.
    """
    reformatter = av.video.reformatter.VideoReformatter()
    for index, frame in _decode(path, packets, wanted):
        yield index, _to_picture(frame, reformatter, packets.pixel_aspect)


def read_chosen(path: str | Path, packets: Packets, settings: FrameSettings,
                pick: Callable[[set[int]], set[int]] = set) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, picture), as read_frames does, for those of the frames drawn that pick(frames drawn) returns. A
    frame that cannot be decoded is replaced by the next one of the draw: pick is called again with those."""
    drawn = set()
    while new := settings.choose(clip_stem(path), packets) - drawn:
        drawn |= new
        yield from read_frames(path, packets, pick(new))


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


def finished(chosen: set[int], target: str, name_of: Callable[[int], str], source: str) -> set[int]:
    """Return those of the frames drawn from a clip whose files, name_of(index), are in the target folder. Raises
    UserError if they were made of another source."""
    present = {index for index in chosen if is_finished(os.path.join(target, name_of(index)))}
    if present:
        check_source(os.path.join(target, name_of(min(present))), source)
    return present


def extract_frames(path: str, frame_dir: str, settings: FrameSettings) -> tuple[int, int, list[str]]:
    """Write the frames drawn from one clip to frame_dir; return (made, present, problems) as Job.run asks.

    Call it inside target_folder.open_target. Raises UserError for a clip that cannot be read, OSError for a full disk.
    """
    name_of, source, present = functools.partial(frame_name, clip_stem(path)), source_of(path), set()

    def missing(chosen):
        present.update(finished(chosen, frame_dir, name_of, source))
        return chosen - present

    with watched_clip(path, frame_dir) as made:
        packets = list_packets(path)
        check_clip_name(path, packets, frame_dir)
        for index, picture in read_chosen(path, packets, settings, missing):
            write_file(frame_dir, name_of(index), encode_jpeg(picture, settings.quality, source))
            made.append(name_of(index))
            heartbeat()
    return len(made), len(present), settings.problems(packets)
