"""The intervals of a frozen network's scores, by split conformal prediction (Lei et al., Journal of the
American Statistical Association 113, 2018).

Some training clips are held out: all clips of some speakers, and as many others at random, so that known and unknown
speakers are among them. A second network learns from the rest as the real one does from all. How far it errs on the
clips held out, from their mean and from one face alone, is how far the real one will err on new clips.
"""
import dataclasses

import numpy as np

from first_impressions.common.constants import TRAITS
from first_impressions.common.device import Machine, seed_everything
from first_impressions.data.splits import draw_speakers
from first_impressions.networks.checkpoint import LEVEL, Intervals
from first_impressions.networks.network import Architecture, build_network
from first_impressions.networks.settings import Plan
from first_impressions.training.inputs import ClipFeatures, score_rows
from first_impressions.training.loop import fit, start_training

HELD_OUT = 1 / 8    # of the clips, by speakers, and as much again at random
LEAST_CLIPS = 20    # held out; fewer tell nothing


def hold_out(samples: ClipFeatures, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows to train on, rows held out) of the usable rows."""
    usable, generator = samples.usable, np.random.default_rng([seed, 2])
    speakers = samples.split.speakers.loc[samples.clips[usable]]
    number = int(HELD_OUT * len(usable))
    unknown = speakers.isin(draw_speakers(speakers, number, generator)).to_numpy()
    known = generator.permutation(np.flatnonzero(~unknown))[:number]
    held_out = np.union1d(np.flatnonzero(unknown), known)
    return np.delete(usable, held_out), usable[held_out]


def calibrate(architecture: Architecture, samples: ClipFeatures, plan: Plan, weights: str,
              machine: Machine) -> Intervals | None:
    """Return the intervals of a frozen network's scores, or None if there are too few training clips. Costs as much as
    the training itself."""
    training, held_out = hold_out(samples, plan.seed)
    if len(held_out) < LEAST_CLIPS or len(training) < 2:
        return None
    learning, testing = samples.select(training), samples.select(held_out)
    seed_everything(plan.seed)
    network = machine.place(build_network(architecture, plan.settings, weights))
    plan = dataclasses.replace(plan, batch_size=min(plan.batch_size, len(training)))
    state = start_training(network, learning, plan)
    for _ in fit(state, plan, learning, show_progress=False):
        pass
    widths = []
    for alone in (False, True):
        errors = np.abs(score_rows(state.network, testing, alone) - testing.targets.numpy())
        # The conformal quantile: of n errors the one of rank ceil((n + 1) level).
        rank = min(len(errors), int(np.ceil((len(errors) + 1) * LEVEL)))
        widths.append(dict(zip(TRAITS, np.sort(errors, axis=0)[rank - 1].astype(float).tolist())))
    return Intervals(*widths, faces=float(np.mean(testing.faces)))
