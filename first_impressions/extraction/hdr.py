"""High dynamic range to standard: frames in HLG or PQ become pictures as an SDR screen shows them.

The electro-optical transfer functions are those of ITU-R BT.2100-2 (PQ table 4; HLG table 5, with the system gamma of a
display of 1,000 cd/m2), the level of SDR white, 203 cd/m2, is that of ITU-R BT.2408-7 (section 2.1), the primaries are
converted as in ITU-R BT.2087-0, and SDR is encoded for a display as in ITU-R BT.1886. The FFmpeg inside PyAV has no
zscale, and its tonemap filter takes linear light only.
"""
import functools

import cv2
import numpy as np

PQ, HLG = 16, 18    # colour transfer characteristics in ITU-T H.273, as FFmpeg numbers them
HDR_REMARKS = {transfer: f"high dynamic range ({name}), converted to standard range"
               for transfer, name in ((PQ, "PQ"), (HLG, "HLG"))}
WHITE, HLG_PEAK, HLG_GAMMA = 203.0, 1000.0, 1.2     # cd/m2, cd/m2, system gamma
LUMINANCE = np.array([[0.2627, 0.6780, 0.0593]], np.float32)     # of BT.2020's red, green and blue
BT2020_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
                           np.float32)
KNEE = 0.9      # in parts of SDR white: lighter pixels are compressed into what is left up to white
CODES = 4096    # entries of the tables


@functools.lru_cache
def _linear_table(transfer: int) -> np.ndarray:
    """Return the linear light, float32, of 65,536 codes of a channel: PQ in parts of SDR white, HLG of the scene."""
    signal = np.arange(65536) / 65535
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = signal ** (1 / m2)
        linear = 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) / WHITE
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        linear = np.where(signal <= 0.5, signal ** 2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return linear.astype(np.float32)


@functools.lru_cache
def _sdr_table() -> np.ndarray:
    """Return the SDR code, uint8, of linear light from 0 to 1 whose square root is one of CODES steps."""
    return np.round(255 * (np.arange(CODES) / (CODES - 1)) ** (2 / 2.4)).astype(np.uint8)


def to_sdr(picture: np.ndarray, transfer: int) -> np.ndarray:
    """Return the SDR picture, uint8 RGB H x W x 3, of one in HLG or PQ with BT.2020's primaries, uint16 RGB
    H x W x 3."""
    light = _linear_table(transfer)[picture]
    if transfer == HLG:
        scene = cv2.transform(light, LUMINANCE)
        light *= (scene ** (HLG_GAMMA - 1) * (HLG_PEAK / WHITE)).reshape(*light.shape[:2], 1)
    light = np.maximum(cv2.transform(light, BT2020_TO_BT709), 0)
    # Above the knee the curve goes on with slope 1 and bends towards white: no light is lost, none is over it.
    over = np.maximum(light - KNEE, 0)
    light = np.minimum(light, KNEE) + (1 - KNEE) * over / (over + 1 - KNEE)
    return _sdr_table()[(np.sqrt(light) * (CODES - 1) + 0.5).astype(np.uint16)]
