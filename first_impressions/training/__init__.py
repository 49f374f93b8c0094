"""Inputs, feature cache, samples, the training loop, a run's folder, conformal intervals, search space and trial."""
