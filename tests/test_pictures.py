"""Pictures of every kind that people have: Pillow's pixels, or one clear line. The oracle is Pillow."""
import io

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from first_impressions.common.command_line import UserError
from first_impressions.extraction.faces import read_picture
from make_media import portrait

pillow_heif.register_heif_opener()
BLUE, GREEN, RED = cv2.split(portrait(128)[:96])
FACE = Image.fromarray(np.dstack([RED, GREEN, BLUE]))
TURN = 0x112    # EXIF's tag of the orientation
# name: (mode, options of Image.save)
KINDS = {
    "progressive.jpg": ("RGB", {"progressive": True}), "grey.jpg": ("L", {}), "camera.jfif": ("RGB", {}),
    "palette.png": ("P", {}), "grey.png": ("L", {}), "alpha.png": ("RGBA", {}), "grey_alpha.png": ("LA", {}),
    "bits.png": ("1", {}), "hole.png": ("P", {"transparency": 3}), "plain.bmp": ("RGB", {}), "lossy.webp": ("RGB", {}),
    "lossless.webp": ("RGBA", {"lossless": True}), "lzw.tif": ("RGB", {"compression": "tiff_lzw"}),
    "fax.tiff": ("1", {"compression": "group4"}), "print.tiff": ("CMYK", {}), "palette.tiff": ("P", {}),
    "phone.heic": ("RGB", {"quality": 90}), "phone.heif": ("RGBA", {}), "web.avif": ("RGB", {}),
    "heic_named.jpg": ("RGB", {"format": "HEIF"}), "jpeg_named.heic": ("RGB", {"format": "JPEG"}),
    "both_eyes.jpg": ("RGB", {"format": "MPO", "save_all": True, "append_images": [ImageOps.mirror(FACE)]}),
}


def pixels(path):
    """Return what Pillow shows of a picture file, uint8 RGB."""
    with Image.open(path) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("name", KINDS)
def test_pixels_are_those_of_pillow(tmp_path, name):
    mode, options = KINDS[name]
    FACE.convert(mode).save(tmp_path / name, **options)
    assert np.abs(read_picture(tmp_path / name).astype(int) - pixels(tmp_path / name)).mean() < 0.5


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "avif"])
def test_every_turn_of_exif(tmp_path, kind):  # in HEIC another box than EXIF turns the picture
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[TURN] = turn
        FACE.save(tmp_path / f"turned.{kind}", exif=exif, quality=95)
        found, expected = read_picture(tmp_path / f"turned.{kind}"), pixels(tmp_path / f"turned.{kind}")
        assert found.shape == expected.shape == ((96, 128, 3) if turn < 5 else (128, 96, 3))
        assert np.abs(found.astype(int) - expected).mean() < 0.5, turn


def test_sixteen_bits_and_printers_colours(tmp_path):
    for name, picture in (("grey.png", GREEN), ("colour.png", np.dstack([BLUE, GREEN, RED])),
                          ("colour.tiff", np.dstack([BLUE, GREEN, RED]))):
        cv2.imwrite(str(tmp_path / name), picture.astype(np.uint16) * 257)
        assert np.abs(read_picture(tmp_path / name)[:, :, 1].astype(int) - GREEN).max() <= 1, name
    FACE.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert np.abs(read_picture(tmp_path / "print.jpg").astype(int) - np.array(FACE)).mean() < 4


def test_what_cannot_be_read_costs_one_clear_line(tmp_path):
    def reason(name, data):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError) as error:
            read_picture(tmp_path / name)
        assert "\n" not in str(error.value) and len(str(error.value)) < 250
        return str(error.value)

    def saved(image, format):
        file = io.BytesIO()
        image.save(file, format)
        return file.getvalue()

    assert "pixels of another kind than 8 or 16 bits (mode F)" in reason("float.tiff", saved(FACE.convert("F"), "TIFF"))
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "HEIF"):
        data = saved(FACE, format)
        assert reason("half.jpg", data[:len(data) // 2]).startswith("no picture that can be read")
    assert "neither JPEG" in reason("jp2.png", saved(FACE, "JPEG2000"))
    assert "are over the limit" in reason("large.avif", saved(Image.new("L", (12000, 12000)), "PNG"))
