"""Figures of an evaluation, plots, report, model card, TensorBoard logs."""
