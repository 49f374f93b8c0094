"""Plots of an evaluation for papers and TensorBoard, drawn by matplotlib."""
import matplotlib
import numpy as np
import pandas
from matplotlib import pyplot
from matplotlib.figure import Figure

matplotlib.use("Agg")  # draws without a display


def trait_figure(trait: str, labels: pandas.DataFrame, predictions: pandas.DataFrame) -> Figure:
    """Return the four-panel matplotlib figure of a trait: labels, predictions, one against the other, and the error
    over the label beside that of random guesses drawn from the labels (red)."""
    true, predicted = labels[trait].to_numpy(), predictions.loc[labels.index, trait].to_numpy()
    guesses = np.random.default_rng(0).permutation(true)
    figure, panels = pyplot.subplots(2, 2, figsize=(9, 8), layout="constrained")
    figure.suptitle(f"{trait.capitalize()}: {len(true)} clips, accuracy {1 - np.abs(true - predicted).mean():.4f}")
    bins = np.linspace(0, 1, 31)
    panels[0, 0].hist(true, bins, color="tab:blue")
    panels[0, 0].set(title="labels", xlabel="score", ylabel="clips", xlim=(0, 1))
    panels[0, 1].hist(predicted, bins, color="tab:orange")
    panels[0, 1].set(title="predictions", xlabel="score", ylabel="clips", xlim=(0, 1))
    for panel in panels[0]:
        panel.yaxis.get_major_locator().set_params(integer=True)
    panels[1, 0].plot([0, 1], [0, 1], color="0.6", linewidth=1)
    panels[1, 0].scatter(true, predicted, s=14, alpha=0.5, color="tab:blue", linewidths=0)
    panels[1, 0].set(title="predictions over labels", xlabel="label", ylabel="prediction", xlim=(0, 1), ylim=(0, 1))
    panels[1, 1].scatter(true, np.abs(true - guesses), s=14, alpha=0.35, color="tab:red", linewidths=0,
                         label=f"random guesses, mean {np.abs(true - guesses).mean():.3f}")
    panels[1, 1].scatter(true, np.abs(true - predicted), s=14, alpha=0.6, color="tab:blue", linewidths=0,
                         label=f"predictions, mean {np.abs(true - predicted).mean():.3f}")
    panels[1, 1].set(title="absolute error over labels", xlabel="label", ylabel="|error|", xlim=(0, 1), ylim=(0, 1))
    panels[1, 1].legend(loc="upper center", framealpha=0.6)
    return figure


