"""Settings, inputs, samples, the training loop, prediction intervals, one trial of the search."""
