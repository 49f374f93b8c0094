"""Settings, losses, the network with its backbones and closed-form parts, weights, checkpoints."""
