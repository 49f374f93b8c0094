"""Metrics, what is measured and printed, LaTeX tables, plots, report, model card, TensorBoard logs."""
