"""Heat maps lie on what steers a score, change with the weights, and are there for every kind of network."""
import numpy as np
import pytest
import torch

from explain import explain_chips, overlay
from model_architectures import build_network

CONFIG = {"l1": 32, "l2": 16, "dropout": 0.0, "heads": 1, "components": 64}
SPOT = (80, 112)  # x, y in the chip
AGREEABLENESS = 3


def spotted_chips(number, generator):
    """Return (uint8 chips with a violet spot at SPOT, its strengths in [0, 1]) on smooth coloured backgrounds."""
    y, x = np.mgrid[:224, :224]
    coarse = torch.from_numpy(generator.uniform(60, 200, (number, 3, 7, 7)))
    pictures = torch.nn.functional.interpolate(coarse, (224, 224), mode="bicubic").clamp(0, 255).numpy()
    strengths = generator.uniform(0, 1, number)
    inside = np.hypot(x - SPOT[0], y - SPOT[1]) < 15
    colour = np.array([150, 30, 200]).reshape(1, 3, 1)
    pictures[:, :, inside] += strengths.reshape(-1, 1, 1) * (colour - pictures[:, :, inside])
    return torch.from_numpy(pictures.astype(np.uint8)), torch.from_numpy(strengths).float()


def test_map_lies_on_the_spot_that_steers_and_changes_with_the_weights():
    torch.manual_seed(0)
    chips, strengths = spotted_chips(160, np.random.default_rng(0))
    network = build_network("FaceResNet29_v1.0", CONFIG, "dlib")
    with torch.no_grad():
        features = torch.cat([network.eval().features(chips[start:start + 32]) for start in range(0, len(chips), 32)])
    targets = torch.full((len(chips), 5), 0.5)
    targets[:, AGREEABLENESS] = 0.1 + 0.8 * strengths
    network.train()
    network.projection.fit(features)
    rows = network.represent(features)
    optimizer = torch.optim.AdamW(network.heads.parameters(), lr=2e-3, weight_decay=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(rows), targets).backward()
        optimizer.step()
    network.eval()

    strong = chips[strengths > 0.7][:12]
    maps = explain_chips(network, strong)
    assert maps.shape == (len(strong), 5, 224, 224) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1
    y, x = np.mgrid[:224, :224]
    around = np.hypot(x - SPOT[0], y - SPOT[1]) < 25
    on_spot = maps[:, AGREEABLENESS][:, around].sum(1) / maps[:, AGREEABLENESS].sum((1, 2)) / around.mean()
    assert np.median(on_spot) > 2.5, f"mass on the spot relative to chance {on_spot}"

    # The sanity checks of Adebayo et al. (2018): with random heads, and with a random network, the map is another.
    for module in network.heads.modules():
        if isinstance(module, torch.nn.Linear):
            module.reset_parameters()
    for randomised in (network, build_network("FaceResNet29_v1.0", CONFIG, "none").eval()):
        other = explain_chips(randomised, strong)
        correlations = [np.corrcoef(a[AGREEABLENESS].ravel(), b[AGREEABLENESS].ravel())[0, 1]
                        for a, b in zip(maps, other)]
        print("correlation with the map of random weights", np.median(correlations))
        assert np.median(correlations) < 0.5

    picture = overlay(strong[0], maps[0], [0.5] * 5)
    assert picture.shape == (252, 6 * 224, 3) and picture.dtype == np.uint8


@pytest.mark.parametrize("name", ["ResNet18_v1.0", "ResNet50_v1.0", "ResNet18_v3.0", "FaceResNet29_v3.0"])
def test_every_kind_of_network_has_maps(name):
    torch.manual_seed(0)
    network = build_network(name, CONFIG, "none").eval()
    before = [parameter.requires_grad for parameter in network.parameters()]
    with torch.inference_mode():
        chips = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
        maps = explain_chips(network, chips)
    assert maps.shape == (2, 5, 224, 224) and np.isfinite(maps).all() and maps.max() == 1
    assert [parameter.requires_grad for parameter in network.parameters()] == before
    assert all(parameter.grad is None for parameter in network.parameters())
