"""The network, its backbones and closed-form parts; weights and checkpoints."""
