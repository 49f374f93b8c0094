"""Draw N random frames from every clip in a folder and write them as JPEG files.

    python pre-processing/extract_frames_from_videos.py data/train/videos data/train/frames 30
    python pre-processing/extract_frames_from_videos.py VIDEO_DIR FRAME_DIR 30 --workers 8
    python pre-processing/extract_frames_from_videos.py VIDEO_DIR FRAME_DIR 30 --ray-address auto

Clips are found in nested folders too. A frame is written as FRAME_DIR/<clip>__frame_<index>.jpg, the index counted from
0 in display order. Which frames are drawn depends only on the seed, the clip's name and its frames: 10 of a clip are
among 30 of it, so running again with a larger N adds frames, and running again with the same N makes nothing new.
What could not be read stands in FRAME_DIR/failures.csv.
"""
import contextlib
import functools
import hashlib
import heapq
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import process_files  # noqa: E402
from command_line import CLIP_SUFFIXES, UserError, make_parser, positive_int, printable, run_script  # noqa: E402

import av  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402

MAX_PIXELS = 100_000_000

# Formats that make FFmpeg open further files or addresses that the "clip" names, or that capture from devices.
UNSAFE_FORMATS = frozenset("""
    concat dash data fbdev hls image2 image2pipe imf kmsgrab lavfi rtp rtsp sap sdp tty v4l2 video4linux2
    webm_dash_manifest x11grab""".split())
READ_OPTIONS = {"protocol_whitelist": "none", "format_whitelist": ",".join(sorted(av.formats_available - UNSAFE_FORMATS))}

# In these codecs a picture carries the time stamp of its packet and a packet holds one picture, as a rule.
TIMED_CODECS = {"h264", "hevc", "vp8", "vp9", "av1"}

av.logging.set_level(None)
cv2.setNumThreads(1)


@dataclass
class Packets:
    """The packets of a clip's video stream in the order of the file, read without decoding.

    times: int64, presentation time stamps; sizes: int64, bytes; clean: bool, True where a decoder can start and knows
    all it needs; indices: int64, display index of the packet's picture, -1 for a packet that is not shown; timed: bool,
    False where time stamps cannot tell pictures apart and pictures must be counted; drawable: indices of the pictures to
    draw from; problem: None, or a sentence if the file ends early.
    """
    times: np.ndarray
    sizes: np.ndarray
    clean: np.ndarray
    indices: np.ndarray
    timed: bool
    drawable: list
    codec: str
    problem: str | None


# ---------------------------------------------------------------- opening and listing

@contextlib.contextmanager
def _open_clip(path, explode=False):
    """Open a clip and yield (container, video stream); decoding on one thread. Raises UserError with FFmpeg's reason."""
    # A file object, not a name: FFmpeg would take a name such as "a:b.mp4" for a protocol.
    with open(path, "rb") as file:
        try:
            container = av.open(file, metadata_errors="replace", options=READ_OPTIONS, buffer_size=1 << 18)
        except (av.error.FFmpegError, ValueError) as error:
            raise UserError(f"no clip that FFmpeg can read ({_reason(error)}); replace or remove it") from None
        with container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic or stream.codec_context is None:
                raise UserError("holds no moving picture that FFmpeg can decode (sound only?); replace or remove it")
            if stream.width * stream.height > MAX_PIXELS:
                raise UserError(f"pictures of {stream.width} x {stream.height} are over the limit of "
                                f"{MAX_PIXELS // 10**6} million pixels; scale the clip down")
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = av.stream.Discard.all
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)} | ({"err_detect": "explode"} if explode else {})
            yield container, stream


def _reason(error):
    return getattr(error, "strerror", None) or str(error)


def _demux(container, stream):
    """Yield the stream's packets that hold data."""
    for packet in container.demux(stream):
        if packet.size:
            process_files.progress()
            yield packet


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


def list_packets(path):
    """Read all packets of a clip's video stream, without decoding, and return Packets.

    The packets count the pictures; the header's number is often wrong. Raises UserError for a file without pictures and
    OSError for one that cannot be opened.
    """
    times, sizes, clean, shown, corrupt, changes, problem = [], [], [], [], [], False, None
    with _open_clip(path) as (container, stream):
        codec = stream.codec_context.name
        codec = {"libdav1d": "av1", "libvpx-vp9": "vp9"}.get(codec, codec)
        extradata = bytes(stream.codec_context.extradata or b"")
        length_size = 0
        if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
            length_size = (extradata[4] & 3) + 1
        if codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
            length_size = (extradata[21] & 3) + 1
        # In MP4 the table of samples is exact, without those that an edit list cuts off.
        is_mp4 = "mp4" in container.format.name.split(",")
        promised = len(stream.index_entries) if is_mp4 else stream.frames
        length = (container.duration or 0) / av.time_base
        time_base = float(stream.time_base)
        try:
            for packet in _demux(container, stream):
                times.append(packet.pts)
                sizes.append(packet.size)
                shown.append(not packet.is_discard)
                corrupt.append(packet.is_corrupt)
                clean.append(_is_clean_key(packet, codec, length_size))
                changes = changes or packet.has_sidedata("new_extradata")
        except av.error.FFmpegError as error:
            problem = f"reading stopped after {len(times)} frames ({_reason(error)})"
    total = sum(shown)
    if not total:
        raise UserError("holds no frame; replace or remove it")
    if problem is None and (len(times) < promised or any(corrupt)):
        problem = (f"seems cut off: its header promises {max(promised, len(times))} frames and {total - sum(corrupt)} are there whole; "
                   "frames were drawn from these; replace the clip if it should be longer")
    known = [time for time, is_shown in zip(times, shown) if is_shown and time is not None]
    if problem is None and not promised and known and (max(known) - min(known)) * time_base < 0.98 * length - 0.5:
        present = _present_seconds(path)
        if present < 0.98 * length - 0.5:
            problem = (f"seems cut off: its header promises {length:.1f} s and {present:.1f} s are there; frames were drawn "
                       "from these; replace the clip if it should be longer")
    shown = np.array(shown)
    indices = np.full(len(times), -1, np.int64)
    timed = codec in TIMED_CODECS and None not in times and len(set(known)) == total
    if timed:
        times = np.array(times, np.int64)
        indices[shown] = np.argsort(np.argsort(times[shown]))
        # A clean start also needs that nothing decoded later is shown earlier, and the reverse.
        latest_before = np.maximum.accumulate(times)
        earliest_after = np.minimum.accumulate(times[::-1])[::-1]
        closed = (times == earliest_after) & (times == latest_before)
        clean = np.array(clean) & closed & (not changes)
        timed = bool(times[0] == earliest_after[0])
    else:
        times = np.zeros(len(times), np.int64)
        clean = np.zeros(len(times), bool)
    # A packet that is only half there gives half a picture.
    drawable = indices[shown & ~np.array(corrupt)].tolist() if timed else range(total)
    return Packets(times, np.array(sizes), clean, indices, timed, drawable, codec, problem)


def _present_seconds(path):
    """Return the time from the first to the last packet of any stream of a clip, in seconds: sound may outlast pictures."""
    first, last = float("inf"), 0.0
    with _open_clip(path) as (container, stream):
        for other in container.streams:
            other.discard = av.stream.Discard.default
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                process_files.progress()
                first = min(first, float(packet.pts * packet.time_base))
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return max(0.0, last - first)


# ---------------------------------------------------------------- choosing

def choose_frames(clip, indices, number_of_frames, seed):
    """Return the set of frames drawn from a clip: `number_of_frames` of `indices`, or all if there are fewer.

    Each index has a place in the draw that depends only on the seed, the clip's name (without suffix) and the index, so
    fewer frames are a subset of more, and frames that cannot be decoded do not change the choice of the others.
    """
    start = hashlib.blake2b(f"{seed}:".encode() + os.fsencode(clip) + b":", digest_size=8)

    def place(index):
        state = start.copy()
        state.update(b"%d" % index)
        return state.digest()

    return set(heapq.nsmallest(number_of_frames, indices, key=place))


# ---------------------------------------------------------------- decoding

def _to_picture(frame, reformatter):
    """Return a decoded frame as BGR uint8 array H x W x 3, turned and mirrored as the clip's display matrix asks."""
    picture = reformatter.reformat(frame, format="bgr24").to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = struct.unpack("=9i", bytes(matrix))[:5]
    if abs(a) + abs(d) < abs(b) + abs(c):
        # x' = c y, y' = b x: the picture's axes change places.
        picture = picture.transpose(1, 0, 2)
        a, d = c, b
    picture = picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(picture)


def _decode_everything(path, packets):
    """Yield (index, frame) for every frame that a plain decode from the start gives; damaged packets are skipped."""
    index_of = dict(zip(packets.times.tolist(), packets.indices.tolist())) if packets.timed else None
    count = 0
    with _open_clip(path) as (container, stream):
        packet_iterator = container.demux(stream)
        while True:
            try:
                packet = next(packet_iterator)
            except StopIteration:
                return
            except av.error.FFmpegError:
                packet = None  # the file is damaged here: drain the decoder
            process_files.progress()
            try:
                frames = stream.codec_context.decode(packet if packet is not None and packet.size else None)
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                frames = []
            for frame in frames:
                if index_of is None:
                    yield count, frame
                elif index_of.get(frame.pts, -1) >= 0:
                    yield index_of[frame.pts], frame
                count += 1
            if packet is None or not packet.size:
                return


def _decode_wanted(path, packets, wanted):
    """Yield (index, frame) for the wanted frames, decoding as little as gives the very same pictures as a plain decode.

    Decoding starts at the last clean key frame before a wanted frame, leaves out pictures that no other picture needs,
    and stops at the last wanted frame before the next clean key frame. Ends early, without an error, as soon as anything
    is not as listed in packets: the caller then decodes everything.
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
    with _open_clip(path, explode=True) as (container, stream):
        decoder = stream.codec_context
        can_skip = packets.codec == "h264"
        for position, packet in enumerate(_demux(container, stream)):
            if (position > end or packet.pts != packets.times[position] or packet.size != packets.sizes[position]):
                return
            if position in lasts:
                last = lasts[position]
            if position > last:
                continue
            if can_skip:
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


def read_chosen(path, packets, clip, number_of_frames, seed, is_finished=lambda index: False):
    """Yield (index, picture) for the frames drawn from a clip, without those for which is_finished(index) is true.

    packets: of list_packets(path); clip: the clip's name without suffix; pictures are BGR uint8 arrays H x W x 3. A frame
    that cannot be decoded is replaced by the next one of the draw.
    """
    reformatter = av.video.reformatter.VideoReformatter()
    wanted = {index for index in choose_frames(clip, packets.drawable, number_of_frames, seed) if not is_finished(index)}
    if wanted and packets.timed:
        try:
            for index, frame in _decode_wanted(path, packets, wanted):
                wanted.remove(index)
                yield index, _to_picture(frame, reformatter)
        except av.error.FFmpegError:
            pass  # damaged somewhere: the plain decode below takes what can be had
    if not wanted:
        return
    readable = set()
    for index, frame in _decode_everything(path, packets):
        readable.add(index)
        if index in wanted:
            wanted.remove(index)
            yield index, _to_picture(frame, reformatter)
            if not wanted:
                return
    if packets.timed:
        readable.intersection_update(packets.drawable)
    instead = {index for index in choose_frames(clip, readable, number_of_frames, seed) if not is_finished(index)}
    instead -= choose_frames(clip, packets.drawable, number_of_frames, seed)
    if instead:
        for index, frame in _decode_everything(path, packets):
            if index in instead:
                instead.remove(index)
                yield index, _to_picture(frame, reformatter)
                if not instead:
                    return


def read_frames(clip_path, number_of_frames, seed=0):
    """Yield (index, picture) for frames drawn from a clip: the very frames and pictures that the script writes.

    index: int, counted from 0 in display order; picture: BGR uint8 array H x W x 3. Clips shorter than number_of_frames
    give all their frames. Raises UserError for a file that holds no pictures, OSError for one that cannot be opened.
    """
    yield from read_chosen(clip_path, list_packets(clip_path), Path(clip_path).stem, number_of_frames, seed)


# ---------------------------------------------------------------- the script

def extract_clip(path, frame_dir, number_of_frames, seed, quality, dry_run):
    """Write the frames drawn from one clip; return (made, present, problem) for process_files.run_batch."""
    clip = Path(path).stem
    before = os.stat(path)
    packets = list_packets(path)
    asked = min(number_of_frames, len(packets.drawable))

    def frame_name(index):
        return f"{clip}__frame_{index}.jpg"

    def is_finished(index):
        return process_files.is_finished(os.path.join(frame_dir, frame_name(index)))

    if dry_run:
        present = sum(map(is_finished, choose_frames(clip, packets.drawable, number_of_frames, seed)))
        return asked - present, present, packets.problem
    made = []
    for index, picture in read_chosen(path, packets, clip, number_of_frames, seed, is_finished):
        done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not done:
            raise UserError(f"a frame of {picture.shape[1]} x {picture.shape[0]} pixels cannot be written as JPEG")
        process_files.write_file(frame_dir, frame_name(index), data)
        made.append(index)
        process_files.progress()
    after = os.stat(path)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        # Its frames were drawn from a part of the clip: take them back.
        for index in made:
            os.unlink(os.path.join(frame_dir, frame_name(index)))
        raise UserError("was changed while it was read; run again when it is complete")
    return len(made), asked - len(made), packets.problem


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("video_dir", metavar="VIDEO_DIR", help="folder with clips, nested folders included")
    parser.add_argument("frame_dir", metavar="FRAME_DIR", help="folder to write the frames to")
    parser.add_argument("number_of_frames", metavar="N", type=positive_int, help="frames to draw from each clip")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other frames")
    parser.add_argument("--quality", type=int, choices=range(1, 101), metavar="1-100", default=95, help="JPEG quality")
    parser.add_argument("--workers", type=positive_int, default=os.cpu_count(), help="processes, one clip each at a time")
    parser.add_argument("--ray-address", default=os.environ.get("RAY_ADDRESS"), metavar="ADDRESS",
                        help="spread the clips over this Ray cluster (also: the variable RAY_ADDRESS)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be made")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_args(argv)
    process_files.check_folders(arguments.video_dir, arguments.frame_dir)
    settings = {"seed": arguments.seed, "quality": arguments.quality}
    process_files.check_settings(arguments.frame_dir, settings)

    def find_clips():
        return process_files.find_files(arguments.video_dir, CLIP_SUFFIXES, exclude=arguments.frame_dir)

    total = process_files.count_files(find_clips, lambda path: Path(path).stem, "clips")
    if not total:
        raise UserError(f"{arguments.video_dir}: no clip found in it (a clip's name ends in .mp4, .avi, .mkv, .webm, ...)")
    function = functools.partial(extract_clip, frame_dir=os.path.abspath(arguments.frame_dir), seed=arguments.seed,
                                 number_of_frames=arguments.number_of_frames, quality=arguments.quality,
                                 dry_run=arguments.dry_run)
    items = ((path, None if problem is None else (None, problem)) for path, problem in find_clips())
    if arguments.dry_run:
        process_files.print_dry_run(function, items, total, "clip", "frame", arguments.frame_dir, arguments.workers)
        return 0
    with process_files.open_target(arguments.frame_dir, settings):
        summary = process_files.run_batch(function, items, arguments.frame_dir, total, "clip", arguments.workers,
                                          arguments.ray_address)
    face_dir = Path(arguments.frame_dir).with_name("faces")
    process_files.print_summary(summary, "clip", "frame", arguments.frame_dir,
                                f"python pre-processing/extract_faces_from_frames.py {printable(arguments.frame_dir)} "
                                f"{printable(face_dir)}")
    return summary.status


if __name__ == "__main__":
    run_script(main)
