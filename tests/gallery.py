"""A gallery of media as people have them, made at test time: one line per medium in MEDIA.

Each shows the portrait of make_media at another place in each frame. What a reader must give (Medium.truth) is that
scene itself, turned as asked: no decoder and no code of the suite takes part in it.
"""
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pillow_heif
from PIL import Image

from make_media import portrait, rotate_clip, set_pixel_aspect, write_clip

pillow_heif.register_heif_opener()
FRAMES = 12
SIZE = (256, 240)
HEAD = portrait(280)


def scene(index, width, height):
    """Return frame `index` of every clip of the gallery as BGR uint8 array height x width x 3."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    picture = np.dstack([60 + 80 * x / width, 90 + 60 * y / height, 140 - 60 * x / width]).astype(np.uint8)
    side = int(0.8 * min(width, height))
    left = round((width - side) * (index % FRAMES) / FRAMES)
    top = round((height - side) * (index % 4) / 4)
    picture[top:top + side, left:left + side] = cv2.resize(HEAD, (side, side), interpolation=cv2.INTER_AREA)
    return picture


@dataclass(frozen=True)
class Medium:
    """A file of the gallery. make(path): writes it; frames: scenes that it shows, in the order of display; seconds: of
    each, default 25 per second; size: width and height of a scene; turn(picture): what a player does with a decoded
    picture; upright: it then shows the scene, else the scene with the same done; problem, note: parts of the sentences
    that a reader must say, "" for none; colours: largest mean difference in grey levels from the scene, None: damaged,
    so neither pictures nor their number are compared."""
    name: str
    make: Callable[[Path], object]
    frames: tuple = tuple(range(FRAMES))
    seconds: tuple | None = None
    size: tuple[int, int] = SIZE
    turn: Callable = field(default=lambda picture: picture)
    upright: bool = False
    problem: str = ""
    note: str = ""
    colours: float | None = 6

    @property
    def file(self) -> str:
        """The name of its file: no other one has the same without the ending."""
        stem, ending = self.name.rsplit(".", 1)
        return f"{stem}_{ending}.{ending}"

    def truth(self, index: int) -> np.ndarray:
        """Return the picture that a reader must give, BGR uint8."""
        picture = scene(self.frames[index], *self.size)
        return picture if self.upright else self.turn(picture)

    def seconds_of(self, index: int) -> float:
        return self.seconds[index] if self.seconds else index / 25


# ---------------------------------------------------------------- makers

def clip(codec="libx264", size=SIZE, frames=FRAMES, picture=scene, **encoding):
    """Return a maker of a clip of scenes, as make_media.write_clip writes it."""
    options = {"libx264": {"preset": "ultrafast", "crf": "12"}, "libx265": {"x265-params": "log-level=none:crf=12"},
               "libvpx": {"crf": "6", "b": "4M", "cpu-used": "8"}, "libvpx-vp9": {"crf": "18", "cpu-used": "8"},
               "libsvtav1": {"crf": "20", "preset": "12", "svtav1-params": "lp=1"}}.get(codec, {"q": "2"})
    encoding["options"] = {**options, **encoding.get("options", {})}
    if codec in ("mpeg4", "mpeg1video", "mpeg2video", "wmv2", "flv1", "msmpeg4", "h263", "mjpeg"):
        encoding["options"] |= {"flags": "+qscale", "global_quality": str(2 * 118)}
    return lambda path: write_clip(path, frames, size, picture, codec=codec, **encoding)


def tagged(matrix, value, full=False):
    """Return a maker of H.264 whose colours are in a matrix (FFmpeg's name, H.273's number) and range, with tags."""
    def make(path):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, width=SIZE[0], height=SIZE[1], pix_fmt="yuv420p")
            context = stream.codec_context
            context.options = {"preset": "ultrafast", "crf": "8"}
            context.colorspace = context.color_primaries = context.color_trc = value
            context.color_range = 2 if full else 1
            for index in range(FRAMES):
                picture = scene(index, *SIZE)[:, :, ::-1].astype(float)
                red, blue = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114)}[matrix]
                luma = picture @ [red, 1 - red - blue, blue]
                chroma = [(picture[..., 2] - luma) / (2 - 2 * blue), (picture[..., 0] - luma) / (2 - 2 * red)]
                gain, offset, chroma_gain = (1, 0, 1) if full else (219 / 255, 16, 224 / 255)
                put_planes(frame := av.VideoFrame(*SIZE, "yuv420p"), [
                    offset + gain * luma, *(128 + chroma_gain * cv2.resize(
                        plane, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for plane in chroma)], np.uint8)
                frame.colorspace, frame.color_range = value, context.color_range
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return make


def put_planes(frame, planes, kind):
    """Write arrays into the planes of a frame, whose rows may be longer."""
    for plane, values in zip(frame.planes, planes):
        rows = np.zeros((plane.height, plane.line_size // np.dtype(kind).itemsize), kind)
        rows[:, :plane.width] = np.round(values).clip(0, np.iinfo(kind).max)
        plane.update(rows if sys.byteorder == "little" else rows.byteswap())


def hdr_signal(sdr, transfer):
    """Return the R'G'B' signal, float H x W x 3 in [0, 1], of an SDR picture (uint8 RGB) whose white is 203 cd/m2: the
    inverse functions of ITU-R BT.2100-2, written anew here."""
    matrix = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    light = 203 * (sdr / 255.0) ** 2.4 @ matrix.T
    if transfer == "pq":
        power = (light / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    luminance = light @ [0.2627, 0.6780, 0.0593] / 1000
    scene_light = light / 1000 * np.maximum(luminance, 1e-9)[..., None] ** (1 / 1.2 - 1)
    return np.where(scene_light <= 1 / 12, np.sqrt(3 * scene_light),
                    0.17883277 * np.log(np.maximum(12 * scene_light - 0.28466892, 1e-9)) + 0.55991073)


def write_hdr(path, transfer, pictures):
    """Write a clip of RGB pictures in 10-bit HEVC with BT.2020's primaries and matrix, in limited range."""
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, width=width, height=height, pix_fmt="yuv420p10le")
        context = stream.codec_context
        context.options = {"x265-params": "log-level=none:pools=none:frame-threads=1:bframes=0", "crf": "4",
                           "preset": "ultrafast"}
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = (
            9, {"pq": 16, "hlg": 18}[transfer], 9, 1)
        for picture in pictures:
            signal = hdr_signal(picture, transfer)
            luma = signal @ [0.2627, 0.6780, 0.0593]
            frame = av.VideoFrame(width, height, "yuv420p10le")
            put_planes(frame, [64 + 876 * luma, *(512 + 896 * cv2.resize(
                (signal[..., channel] - luma) / scale, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
                for channel, scale in ((2, 1.8814), (0, 1.4746)))], np.uint16)
            frame.color_trc, frame.color_primaries, frame.colorspace, frame.color_range = context.color_trc, 9, 9, 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def hdr(transfer):
    return lambda path: write_hdr(path, transfer, [scene(index, *SIZE)[:, :, ::-1] for index in range(FRAMES)])


def changed(make, change):
    """Return a maker of another maker's clip whose bytes, bytearray, are then changed by change(data) -> bytes."""
    def write(path):
        make(path)
        path.write_bytes(change(bytearray(path.read_bytes())))
    return write


def joined(*makers):
    def write(path):
        parts = []
        for make in makers:
            make(path)
            parts.append(path.read_bytes())
        path.write_bytes(b"".join(parts))
    return write


def half(data):
    return data[:len(data) // 2]


def hole(data):
    start = data.index(b"mdat") + len(data) // 2
    data[start:start + 600] = bytes(600)
    return data


def mirrored(data):
    """Write a display matrix that mirrors from left to right into an MP4 clip."""
    plain = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    place = data.index(plain, data.index(b"tkhd"))
    data[place:place + 4] = np.array([-1 << 16], ">i4").tobytes()
    return data


def with_streams(path):
    """Write a clip with a cover picture first, then the film, then a second, smaller film."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25, width=width, height=height, pix_fmt="yuv420p")
                   for width, height in (SIZE, (64, 48))]
        for stream in streams:
            stream.codec_context.options = {"preset": "ultrafast", "crf": "12"}
        cover = container.add_stream("mjpeg", rate=25, width=64, height=48, pix_fmt="yuvj420p")
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(scene(0, 64, 48), "bgr24")))
        for index in range(FRAMES):
            for stream in streams:
                picture = scene(index, stream.width, stream.height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "bgr24")))
        for stream in (*streams, cover):
            container.mux(stream.encode(None))


def two_layers(path):
    """Write HEVC in which each picture has a copy with nuh_layer_id 1, as the second eye of a spatial video (MV-HEVC)
    has: a decoder of one layer passes over it (ITU-T H.265, 7.4.2.2)."""
    single = path.with_suffix(".single.mp4")
    clip("libx265")(single)
    with av.open(str(single)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            data, position, copies = bytes(packet), 0, b""
            while position < len(data):
                end = position + 4 + int.from_bytes(data[position:position + 4], "big")
                if data[position + 4] >> 1 & 63 < 32:  # of a picture
                    copies += data[position:position + 5] + bytes([data[position + 5] | 8]) + data[position + 6:end]
                position = end
            both = av.Packet(data + copies)
            both.pts, both.dts, both.time_base, both.duration = packet.pts, packet.dts, packet.time_base, 1
            both.is_keyframe, both.stream = packet.is_keyframe, stream
            if data:
                container.mux(both)
    single.unlink()


def jpegs_in(exif_turn):
    """Return a maker of MJPEG whose pictures carry an EXIF turn, as cameras write time lapses."""
    def make(path):
        exif = Image.Exif()
        exif[0x112] = exif_turn
        with av.open(str(path), "w") as container:
            width, height = SIZE if exif_turn < 5 else SIZE[::-1]
            stream = container.add_stream("mjpeg", rate=25, width=width, height=height, pix_fmt="yuvj420p")
            for index in range(FRAMES):
                file = io.BytesIO()
                stored = BACK[exif_turn](scene(index, *SIZE))[:, :, ::-1]
                Image.fromarray(np.ascontiguousarray(stored)).save(file, "JPEG", exif=exif, quality=95)
                packet = av.Packet(file.getvalue())
                packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 25)
                container.mux(packet)
    return make


def picture(mode="RGB", exif_turn=None, **options):
    """Return a maker of a picture of the first scene by Pillow."""
    def make(path):
        stored = BACK[exif_turn or 1](scene(0, *SIZE))[:, :, ::-1]
        image = Image.fromarray(np.ascontiguousarray(stored)).convert(mode)
        exif = Image.Exif()
        if exif_turn:
            exif[0x112] = exif_turn
        image.save(path, **{"exif": exif, **options} if exif_turn else options)
    return make


def sixteen_bits(path):
    cv2.imwrite(str(path), scene(0, *SIZE).astype(np.uint16) * 257)


def animation(path):
    images = [Image.fromarray(scene(index, *SIZE)[:, :, ::-1].copy()) for index in range(FRAMES)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=40, **(
        {} if path.suffix == ".gif" else {"quality": 90}))


def sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def turned(degrees):
    size = SIZE[::-1] if degrees % 180 else SIZE
    return lambda path: rotate_clip(clip(size=size, picture=lambda index, *_: np.ascontiguousarray(
        np.rot90(scene(index, *SIZE), degrees // 90)))(path), degrees)


def grey(image):
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


# ---------------------------------------------------------------- the table

VARIABLE = tuple(np.cumsum([20, 40, 40, 80, 20, 100, 40, 40, 200, 40, 30, 40]).tolist())
B_FRAMES = {"options": {"preset": "medium", "bf": "3"}}
SIZES = [(202, 240), (426, 240), (854, 480), (240, 426), (366, 650), (408, 720), (1080, 1920), (1278, 720)]
ENCRYPTION = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": 32 * "7", "encryption_kid": 32 * "a"}
PLAYER_TURNS = {1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud,
                5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p, -1),
                7: lambda p: np.rot90(p, 2).transpose(1, 0, 2), 8: np.rot90}    # by EXIF's number
BACK = {**PLAYER_TURNS, 6: PLAYER_TURNS[8], 8: PLAYER_TURNS[6]}    # what undoes each of them
ONE = {"frames": (0,)}

CLIPS = [
    *(Medium(f"size_{size[0]}x{size[1]}.mp4", clip(size=size), size=size) for size in SIZES),
    Medium("odd_241x201.mp4", clip(size=(241, 201), pixel_format="yuv444p"), size=(241, 201)),
    Medium("ten_bits.mp4", clip(pixel_format="yuv420p10le")),
    Medium("chroma_422.mkv", clip(pixel_format="yuv422p")),
    Medium("full_range.mp4", clip(pixel_format="yuvj420p")),
    Medium("grey.mp4", clip(pixel_format="gray"), turn=grey, colours=8),
    Medium("bt709.mp4", tagged("bt709", 1)), Medium("bt709_full.mp4", tagged("bt709", 1, True)),
    Medium("bt601.mp4", tagged("bt601", 6)), Medium("bt601_full.mov", tagged("bt601", 6, True)),
    Medium("hlg.mp4", hdr("hlg"), note="high dynamic range (HLG)"),
    Medium("pq.mov", hdr("pq"), note="high dynamic range (PQ)"),
    Medium("hevc.mp4", clip("libx265")), Medium("hevc_ten.mkv", clip("libx265", pixel_format="yuv420p10le")),
    Medium("spatial.mov", two_layers),
    Medium("vp8.webm", clip("libvpx")), Medium("vp9.webm", clip("libvpx-vp9")),
    Medium("av1.mp4", clip("libsvtav1")), Medium("av1.webm", clip("libsvtav1")),
    Medium("mpeg1.mpg", clip("mpeg1video", options={"bf": "2"})), Medium("mpeg2.vob", clip("mpeg2video")),
    Medium("mpeg2.mts", clip("mpeg2video", container_format="mpegts", options={"bf": "2"})),
    Medium("mpeg4.avi", clip("mpeg4", options={"bf": "2"})), Medium("mpeg4.mp4", clip("mpeg4", options={"bf": "2"})),
    Medium("motion.avi", clip("mjpeg", pixel_format="yuvj420p")),
    Medium("motion.mov", clip("mjpeg", pixel_format="yuvj420p")),
    Medium("prores.mov", clip("prores_ks", pixel_format="yuv422p10le")),
    Medium("windows.wmv", clip("wmv2")), Medium("flash.flv", clip("flv1")),
    Medium("lossless.mkv", clip("ffv1", pixel_format="yuv444p")),
    Medium("screen.mov", clip("qtrle", pixel_format="rgb24")),
    Medium("animation.gif", animation, colours=10),
    Medium("film.m4v", clip(container_format="mp4", **B_FRAMES)), Medium("film.mov", clip(**B_FRAMES)),
    Medium("film.mkv", clip(**B_FRAMES)), Medium("film.ts", clip(**B_FRAMES)), Medium("film.flv", clip(**B_FRAMES)),
    Medium("film.3gp", clip(**B_FRAMES)), Medium("film.mxf", clip(**B_FRAMES)),
    Medium("b_frames.avi", clip(**B_FRAMES)), Medium("b_frames.wmv", clip(container_format="asf", **B_FRAMES)),
    Medium("b_frames_4.wmv", clip("mpeg4", container_format="asf", options={"bf": "2"})),
    Medium("twice.ts", joined(clip(), clip()), frames=2 * tuple(range(FRAMES)), note="its clock starts anew 1 time"),
    Medium("b_twice.ts", joined(clip(**B_FRAMES), clip(**B_FRAMES)), frames=2 * tuple(range(FRAMES)),
           note="its clock starts anew 1 time"),
    Medium("negative.mkv", clip(shift=-200, container_options={"avoid_negative_ts": "disabled"}), note="bear no time"),
    Medium("later.mkv", clip(shift=3_600_000)),
    Medium("variable.mp4", clip(times=VARIABLE), seconds=tuple(time / 1000 - 0.02 for time in VARIABLE)),
    Medium("variable.webm", clip("libvpx-vp9", times=VARIABLE),
           seconds=tuple(time / 1000 - 0.02 for time in VARIABLE)),
    Medium("edit_list.mp4", clip(shift=-160, container_options={"avoid_negative_ts": "disabled"}),
           frames=tuple(range(4, FRAMES))),
    Medium("open_group.mp4", clip(key_distance=6, options={"preset": "medium", "x264-params": "open-gop=1:bframes=3"})),
    Medium("refresh.mp4", clip(options={"intra-refresh": "1"})),
    Medium("one.mp4", clip(frames=1), **ONE), Medium("one.webm", clip("libvpx-vp9", frames=1), **ONE),
    *(Medium(f"turned_{degrees}.mp4", turned(degrees), upright=True,
             turn=lambda p, times=degrees // 90: np.rot90(p, -times))
      for degrees in (90, 180, 270)),
    Medium("mirrored.mp4", changed(clip(picture=lambda *scene_of: np.fliplr(scene(*scene_of)).copy()), mirrored),
           turn=np.fliplr, upright=True),
    Medium("wide_pixels.mp4", clip(pixel_aspect=Fraction(4, 3)), turn=lambda p: cv2.resize(p, (341, 240))),
    Medium("high_pixels.mp4", lambda path: set_pixel_aspect(clip(pixel_aspect=Fraction(2))(path), 8, 9),
           turn=lambda p: cv2.resize(p, (256, 270))),
    *(Medium(f"exif_{turn}.mov", jpegs_in(turn), turn=PLAYER_TURNS[turn], upright=True) for turn in (1, 2, 6)),
    Medium("exif_8.avi", jpegs_in(8), turn=PLAYER_TURNS[8], upright=True),
    Medium("streams.mp4", with_streams),
    Medium("hole.mp4", changed(clip(), hole), note="its data are damaged", colours=None),
    Medium("cut.mkv", changed(clip(frames=60), half), note="seems cut off", colours=None),
    Medium("sound.mp4", sound, problem="contains no moving picture (sound only?)"),
    Medium("locked.mp4", clip(container_options=ENCRYPTION), problem="is encrypted"),
    Medium("unknown.mp4", changed(clip(), lambda data: data.replace(b"avc1", b"zzz1")), problem="is in a video codec"),
    Medium("cut.mp4", changed(clip(), half), problem="no clip that FFmpeg can read"),
]
PICTURES = [
    *(Medium(f"exif_{turn}.jpg", picture(exif_turn=turn, quality=95), turn=PLAYER_TURNS[turn], upright=True, **ONE)
      for turn in range(1, 9)),
    Medium("progressive.jpg", picture(progressive=True), **ONE), Medium("cmyk.jpg", picture("CMYK", quality=95), **ONE),
    Medium("grey.jpg", picture("L"), turn=grey, **ONE), Medium("grey.png", picture("L"), turn=grey, **ONE),
    Medium("sixteen.png", sixteen_bits, **ONE), Medium("sixteen.tif", sixteen_bits, **ONE),
    Medium("sixteen_grey.heic", lambda path: Image.fromarray(
        cv2.cvtColor(scene(0, *SIZE), cv2.COLOR_BGR2GRAY).astype(np.uint16) * 257).save(path), turn=grey, **ONE),
    Medium("palette.png", picture("P"), colours=20, **ONE), Medium("alpha.png", picture("RGBA"), **ONE),
    Medium("lzw.tiff", picture(compression="tiff_lzw"), **ONE), Medium("plain.bmp", picture(), **ONE),
    Medium("from_chrome.jfif", picture(format="JPEG"), **ONE),
    Medium("both_eyes.jpg", picture(format="MPO", save_all=True, append_images=[Image.new("RGB", SIZE)]), **ONE),
    Medium("web.webp", picture(), **ONE), Medium("animation.webp", animation, **ONE),
    Medium("phone.heic", picture(), **ONE), Medium("phone_heic.jpg", picture(format="HEIF"), **ONE),
    Medium("web.avif", picture(), **ONE), Medium("animation.avif", animation, **ONE),
    Medium("truncated.jpg", changed(picture(), half), problem="no picture that can be read"),
    Medium("truncated.png", changed(picture(), half), problem="no picture that can be read"),
    Medium("floats.tiff", picture("F"), problem="pixels of another kind than 8 or 16 bits"),
    Medium("camera.dng", picture(format="TIFF"), problem="in the format DNG"),
]
MEDIA = [*CLIPS, *PICTURES]
