"""Heat maps: where a face raises the score of each trait more than the others.

HiResCAM (Draelos and Carin, arXiv:2011.08891): gradient times activation at every place, summed over the filters. For
the ResNets, whose last maps are averaged, it equals Grad-CAM (Selvaraju et al. 2017) but for a factor. The head of the
face network sees a grid of places of each map; weights averaged over the whole map, as in Grad-CAM, lose the place: on
the demo the map for agreeableness then lies on the spot that steers it no better than the other maps do.

Maps of single scores look alike, since the traits rise together. So the mean of what a place adds to the five scores is
subtracted from what it adds to each. docs/evaluation_and_prediction.md says how much better these maps point. They show
what the network uses, not why strangers judge as they do.
"""
import copy

import numpy as np
import torch
from torch.nn import functional

from first_impressions.common.constants import TRAITS
from first_impressions.networks.network import PersonalityNetwork


def explain_chips(network: PersonalityNetwork, chips: torch.Tensor) -> np.ndarray:
    """Return heat maps, float32 N x 5 x H x W in [0, 1], of uint8 RGB chips N x 3 x H x W, on any device.

    A map shows where its trait's score is raised by more than the five scores are on average; what lowers a score
    counts as 0 in both. The maps of all views are added at their places; each map's largest value is 1 (all 0 if no
    place raises the score above the others).
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

    The activations are those of the stage that the table of backbones names. The scores are those that predict.py
    gives a face: of the chip and its mirror image together, whose maps are added at their places.
    """
    activations = []  # of each view, the chips and then their mirror images

    def keep(module, inputs, output):
        # Cut off from what lies before, so that gradients reach the stage and go no further.
        activations.append(output.detach().requires_grad_())
        return activations[-1]

    with torch.inference_mode(False), torch.enable_grad():
        network = copy.deepcopy(network).eval()  # app.py scores with the other one meanwhile, without the hook
        network.backbone.get_submodule(network.kind.explained_stage).register_forward_hook(keep)
        scores = network.scores_of_faces(chips)
        of_traits = [torch.autograd.grad(score, activations, retain_graph=True) for score in scores.sum(0)]
    result = []
    for view, activation in enumerate(activations):
        maps = [(gradients[view] * activation.detach()).float().sum(1) for gradients in of_traits]
        of_chips, of_mirrored = torch.stack(maps, dim=1).cpu().chunk(2)
        result.append(of_chips + of_mirrored.flip(-1))
    return result
