"""dlib's face recognition network in PyTorch, and the reader of dlib's file of weights.

The network is that of dlib's dnn_face_recognition_ex.cpp (http://dlib.net/dnn_face_recognition_ex.cpp.html), a ResNet
(He et al. 2016) of 29 convolutions. Its weights come with the package face-recognition-models.
"""
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from first_impressions.common.command_line import UserError
from first_impressions.common.files import packaged_model

FACE_WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
FACE_WEIGHTS_SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
FACE_MEAN = (122.782 / 255, 117.001 / 255, 104.298 / 255)  # of RGB pictures in [0, 1]
FACE_STD = (256 / 255,) * 3
FACE_INPUT_SIZE = 150  # pixels
FACE_STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))  # filters, blocks, halves
# The network sees these parts of a chip's side, one after the other: with the face script's padding of 0.5 the whole
# chip shows hair and neck; its middle three quarters are the crop (padding 0.25) that the network was made for.
FACE_VIEWS = (1.0, 0.75)
DESCRIPTOR_SIZE = 128
# The maps of each stage are average-pooled to a grid x grid map. The early stages see skin, hair and light,
# and where they are. The late stages, made to tell people apart, have dropped that.
FACE_GRIDS = (4, 4, 2, 2, 2)
FEATURES_PER_VIEW = sum(filters * grid ** 2 for (filters, _, _), grid in zip(FACE_STAGES, FACE_GRIDS)) + DESCRIPTOR_SIZE


class FaceBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; a halving block averages 2x2 pixels on its shortcut. dlib's affine layers
    (a scale and an offset per filter) are folded into the convolutions."""

    def __init__(self, inputs, filters, halves):
        super().__init__()
        self.halves = halves
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride=2 if halves else 1, padding=0 if halves else 1)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1)

    def forward(self, maps):
        shortcut = functional.avg_pool2d(maps, 2, 2) if self.halves else maps
        maps = self.conv2(functional.relu(self.conv1(maps)))
        if maps.shape == shortcut.shape:
            return functional.relu(maps + shortcut)
        # dlib adds tensors of unequal shapes by filling up the smaller with zeros at the right, the bottom and the end.
        shape = [max(a, b) for a, b in zip(maps.shape[1:], shortcut.shape[1:])]
        return functional.relu(_filled_up(maps, shape) + _filled_up(shortcut, shape))


def _filled_up(maps, shape):
    missing = [target - present for target, present in zip(shape, maps.shape[1:])]
    return functional.pad(maps, (0, missing[2], 0, missing[1], 0, missing[0]))


class FaceResNet29(nn.Module):
    """dlib's face recognition network: 29 convolutions, 5 stages of 32, 64, 128, 256 and 256 filters.

    Takes float RGB pictures B x 3 x H x W, (x / 255 - FACE_MEAN) / FACE_STD, made for 150 x 150 and accepting
    anything of at least 63 x 63.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, FACE_STAGES[0][0], 7, stride=2)
        inputs = FACE_STAGES[0][0]
        for number, (filters, blocks, halves) in enumerate(FACE_STAGES, 1):
            stage = [FaceBlock(inputs if block == 0 else filters, filters, halves and block == 0)
                     for block in range(blocks)]
            setattr(self, f"stage{number}", nn.Sequential(*stage))
            inputs = filters
        self.descriptor = nn.Linear(inputs, DESCRIPTOR_SIZE, bias=False)

    def forward(self, pictures):
        """Return what the heads see of a view, B x 4224: the maps of the stages (32 x 35 x 35, 64 x 17 x 17,
        128 x 8 x 8, 256 x 4 x 4, 256 x 2 x 2), averaged as FACE_GRIDS says, and dlib's descriptor of 128 numbers."""
        maps = [functional.max_pool2d(functional.relu(self.stem(pictures)), 3, 2)]
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4, self.stage5):
            maps.append(stage(maps[-1]))
        # After all stages: the order in which gradients are added up decides on their last bits.
        pooled = [functional.adaptive_avg_pool2d(some, grid).flatten(1) for some, grid in zip(maps[1:], FACE_GRIDS)]
        return torch.cat([*pooled, self.descriptor(maps[-1].mean((2, 3)))], dim=1)


def _packed(number):
    # dlib writes an integer as the number of its bytes, then these, the lowest first.
    size = max(1, (number.bit_length() + 7) // 8)
    return bytes([size]) + number.to_bytes(size, "little")


def _read_tensors(content, shapes):
    """Yield the tensors of dlib's file, float32, of the shapes that the network needs; settings lie between them."""
    position = 0
    for rows, columns in shapes:
        header = b"".join(_packed(n) for n in (2, rows, columns, 1, 1))  # version, shape
        start = content.index(header, position) + len(header)
        position = start + 4 * rows * columns
        tensor = np.frombuffer(content, dtype="<f4", count=rows * columns, offset=start)
        yield torch.from_numpy(tensor.astype(np.float32).reshape(rows, columns))


def read_face_weights(path: str | os.PathLike | None = None) -> FaceResNet29:
    """Return a FaceResNet29 (float32, evaluation mode) with the weights of dlib's file; default: the one of the package
    face-recognition-models. Raises UserError if it is missing or holds other bytes than dlib's."""
    path = path or packaged_model(FACE_WEIGHTS)
    content = Path(path).read_bytes()
    if hashlib.sha256(content).hexdigest() != FACE_WEIGHTS_SHA256:
        raise UserError(f"{path}: is damaged or not dlib's face recognition network; install it anew with pip install "
                        "--force-reinstall face-recognition-models")
    network = FaceResNet29()
    convolutions, shapes = [module for module in network.modules() if isinstance(module, nn.Conv2d)], []
    for convolution in convolutions:
        shapes += [(convolution.weight.numel() + convolution.out_channels, 1), (2 * convolution.out_channels, 1)]
    shapes.append((network.descriptor.in_features, network.descriptor.out_features))
    tensors = list(_read_tensors(content, shapes))
    with torch.no_grad():
        for convolution, weights, affine in zip(convolutions, tensors[0:-1:2], tensors[1:-1:2]):
            filters = convolution.out_channels
            scale, offset = affine[:filters, 0], affine[filters:, 0]
            kernel, bias = weights[:-filters, 0].view(convolution.weight.shape), weights[-filters:, 0]
            convolution.weight.copy_(kernel * scale.view(-1, 1, 1, 1))
            convolution.bias.copy_(bias * scale + offset)
        network.descriptor.weight.copy_(tensors[-1].T)
    return network.eval()
