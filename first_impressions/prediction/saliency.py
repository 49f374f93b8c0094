"""Heat maps: where a face raises the score of each trait more than the others.

HiResCAM (Draelos and Carin, arXiv:2011.08891): gradient times activation at every place, summed over the filters. For
the ResNets, whose last maps are averaged, it equals Grad-CAM (Selvaraju et al. 2017) but for a factor. The head of the
face network sees a grid of places of each map; weights averaged over the whole map, as in Grad-CAM, lose the place: on
the demo the map for agreeableness then lies on the spot that steers it no better than the other maps do.

Maps of single scores look alike, since the traits rise together. So the mean of what a place adds to the five scores is
subtracted from what it adds to each. docs/evaluation_and_prediction.md says how much better these maps point.

    python predict.py EXPERIMENT clip.mp4 --explain maps       one picture per file: the chip and the five maps over it

A map shows what the network uses, not why strangers judge as they do.
"""
import cv2
import numpy as np
import torch
from torch.nn import functional

from first_impressions.common.constants import TRAITS
from first_impressions.networks.network import PersonalityNetwork
from first_impressions.prediction.scoring import FileScores
from first_impressions.prediction.tables import high_means_calm

CAPTION, LEGEND = 28, 28    # heights in pixels of what stands below the maps
BAR = 112                   # width in pixels of the legend's bar of colours


def explain_chips(network: PersonalityNetwork, chips: torch.Tensor) -> np.ndarray:
    """Return heat maps, float32 N x 5 x H x W in [0, 1], of uint8 RGB chips N x 3 x H x W, on any device.

    network: a PersonalityNetwork, put into evaluation mode. A map shows where its trait's score is raised by more than
    the five scores are on average; what lowers a score counts as 0 in both. The maps of all views are added at their
    places; each map's largest value is 1 (all 0 if no place raises the score above the others).
    """
    height, width = chips.shape[-2:]
    maps = torch.zeros(len(chips), len(TRAITS), height, width)
    for part, signed in zip(network.kind.views, contributions(network, chips)):
        raises = signed.clamp_min(0)
        coarse = (raises - raises.mean(1, keepdim=True)).clamp_min(0)
        inside = [round(part * length) for length in (height, width)]
        top, left = (height - inside[0]) // 2, (width - inside[1]) // 2
        fine = functional.interpolate(coarse, inside, mode="bilinear", align_corners=False)
        maps[:, :, top:top + inside[0], left:left + inside[1]] += fine
    largest = maps.amax((2, 3), keepdim=True)
    return torch.where(largest > 0, maps / largest.clamp_min(1e-30), 0).numpy()


def contributions(network: PersonalityNetwork, chips: torch.Tensor) -> list[torch.Tensor]:
    """Return gradient times activation of the five scores, float32 N x 5 x h x w on the CPU for each view, of uint8
    RGB chips N x 3 x H x W.

    The activations are those of the stage that the table of backbones names. The scores are those that
    predict.py gives a face: of the chip and its mirror image together, whose maps are added at their places.
    """
    network.eval()
    stage = network.backbone.get_submodule(network.kind.explained_stage)
    activations = []  # of each view, the chips and then their mirror images

    def keep(module, inputs, output):
        # Cut off from what lies before, so that gradients reach the stage and go no further.
        activations.append(output.detach().requires_grad_())
        return activations[-1]

    with torch.inference_mode(False), torch.enable_grad():
        hook = stage.register_forward_hook(keep)
        try:
            scores = network.scores_of_faces(chips)
        finally:
            hook.remove()
        of_traits = [torch.autograd.grad(score, activations, retain_graph=True) for score in scores.sum(0)]
    result = []
    for view, activation in enumerate(activations):
        maps = [(gradients[view] * activation.detach()).float().sum(1) for gradients in of_traits]
        of_chips, of_mirrored = torch.stack(maps, dim=1).cpu().chunk(2)
        result.append(of_chips + of_mirrored.flip(-1))
    return result


def overlay(chip: np.ndarray, maps: np.ndarray, labels: list[str], note: str = "") -> np.ndarray:
    """Return one picture, uint8 RGB: the chip and its five maps over it, labels below the six, a note, and a legend of
    the colours.

    chip: uint8 RGB 3 x H x W. maps: float 5 x H x W in [0, 1].
    """
    picture = np.ascontiguousarray(np.asarray(chip).transpose(1, 2, 0))
    height, width = picture.shape[:2]
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[:, :, None]  # so that every colour is the map's
    panels = [(0.45 * grey + 0.55 * _colours(heat)).astype(np.uint8) for heat in maps]
    strip = np.concatenate([picture, *panels], axis=1)
    strip = np.concatenate([strip, np.full((CAPTION + LEGEND, strip.shape[1], 3), 255, np.uint8)])
    for number, label in enumerate(labels):
        _write(strip, label, number * width + 6, height + CAPTION - 9)
    baseline = height + CAPTION + LEGEND - 10
    _write(strip, "colour: how much more a place raises this score than all scores on average, from none", width + 6,
           baseline)
    left = 4 * width + 6
    strip[baseline - 10:baseline, left:left + BAR] = _colours(np.tile(np.linspace(0, 1, BAR), (10, 1)))
    _write(strip, "to the most in this map", left + BAR + 10, baseline)
    _write(strip, note, 6, baseline)
    return strip


def draw_heat_maps(network: PersonalityNetwork, scores: FileScores) -> np.ndarray:
    """Return overlay()'s picture, uint8 BGR, of the chip of a file's scores; of several people it names the chip's."""
    face, star = scores.faces[len(scores.faces) // 2], "*" if high_means_calm(scores.rows[0]) else ""
    labels = [f"person {face['person']}, one face" if len(scores.people) > 1 else "one face",
              *(f"{trait}{star if trait == 'neuroticism' else ''} {face[trait]:.2f}" for trait in TRAITS)]
    maps = explain_chips(network, scores.chip[None].to(network.mean.device))[0]
    return overlay(scores.chip.numpy(), maps, labels, star and "* high means calm")[:, :, ::-1]


def _colours(heat):
    return cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]


def _write(picture, text, x, y):
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1, cv2.LINE_AA)
