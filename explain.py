"""Where a face raises the score of each trait: heat maps by captum.

Grad-CAM in the form of Draelos and Carin (HiResCAM, 2020): gradient times activation at every place, summed over the
filters. For the ResNets, whose last maps are averaged, it is Grad-CAM itself (Selvaraju et al. 2017) but for a factor.
The head of the face network sees a grid of places of each map. Weights averaged over the whole map, as in Grad-CAM,
lose the place: on the demo the map for agreeableness then lies on the spot that steers it no more than the other maps.

    python predict.py EXPERIMENT clip.mp4 --explain maps       one picture a file: the chip and the five maps over it

A map shows what the network uses, not why strangers judge as they do.
"""
import cv2
import numpy as np
import torch
from captum.attr import LayerGradientXActivation
from torch import nn

from labels import TRAITS
from model_architectures import PersonalityNetwork


class _ScoresOfView(nn.Module):
    """The scores as a function of one view; the features of the other views stay as they are."""

    def __init__(self, network, number, features):
        super().__init__()
        self.network, self.number, self.features = network, number, features

    def forward(self, view):
        features = [*self.features]
        features[self.number] = self.network.features_of_view(view)
        return self.network(self.network.represent(torch.cat(features, dim=1)))


def explain_chips(network: PersonalityNetwork, chips: torch.Tensor, layer: str | None = None) -> np.ndarray:
    """Return heat maps, float32 N x 5 x H x W in [0, 1], of uint8 RGB chips N x 3 x H x W, on any device.

    network: a PersonalityNetwork in evaluation mode. layer: the name of the backbone's stage whose maps are weighted;
    None: the one that the table of backbones names. Only places that raise the score count. The maps of all views are
    added at their places; each map's largest value is 1 (all 0 where nothing raises the score).
    """
    network.eval()
    layer = network.backbone.get_submodule(layer or network.kind.explained_stage)
    height, width = chips.shape[-2:]
    # Frozen weights take no gradient; that the views take one is enough for the maps behind them.
    with torch.inference_mode(False), torch.enable_grad():
        maps = torch.zeros(len(chips), len(TRAITS), height, width)
        pictures = chips.to(network.mean.device, network.mean.dtype) / 255
        views = [network.view_of(pictures, part) for part in network.kind.views]
        features = [network.features_of_view(view).detach() for view in views]
        for number, part in enumerate(network.kind.views):
            method = LayerGradientXActivation(_ScoresOfView(network, number, features), layer)
            inside = [round(part * length) for length in (height, width)]
            top, left = (height - inside[0]) // 2, (width - inside[1]) // 2
            for trait in range(len(TRAITS)):
                view = views[number].detach().requires_grad_()
                coarse = method.attribute(view, target=trait).detach().float().sum(1, keepdim=True)
                fine = nn.functional.interpolate(coarse.clamp_min(0), inside, mode="bilinear", align_corners=False)
                maps[:, trait, top:top + inside[0], left:left + inside[1]] += fine[:, 0].cpu()
    largest = maps.amax((2, 3), keepdim=True)
    return torch.where(largest > 0, maps / largest.clamp_min(1e-30), 0).numpy()


def overlay(chip: np.ndarray, maps: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """Return one picture, uint8 RGB: the chip and its five maps over it, with the traits' names and scores below.

    chip: uint8 RGB 3 x H x W. maps: float 5 x H x W in [0, 1]. scores: five numbers, or None.
    """
    picture = np.ascontiguousarray(np.asarray(chip).transpose(1, 2, 0))
    panels, labels = [picture], ["one face"]
    for number, (trait, heat) in enumerate(zip(TRAITS, np.asarray(maps))):
        colours = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
        panels.append((0.45 * picture + 0.55 * colours).astype(np.uint8))
        labels.append(trait if scores is None else f"{trait} {scores[number]:.2f}")
    strip = np.concatenate(panels, axis=1)
    strip = np.concatenate([strip, np.full((28, strip.shape[1], 3), 255, np.uint8)])
    for number, label in enumerate(labels):
        cv2.putText(strip, label, (number * picture.shape[1] + 6, strip.shape[0] - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.5,
                    (20, 20, 20), 1, cv2.LINE_AA)
    return strip
