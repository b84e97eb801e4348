"""Repair: a merged model's activations given back the mean and variance that an expert's have, site by site.

TACT takes the statistics of one task's expert, REPAIR the mean over all experts; both are one engine. This room runs
and hooks forward passes. It does not know how the model was merged, nor what a page is.
"""

from mergelab.maths.moments import MODES
from mergelab.repair.fit import FEWEST, MOST, How, fit, joined, mean_goals
from mergelab.repair.fold import Folded, fold
from mergelab.repair.patch import Corrected, Patch, applied
from mergelab.repair.sites import PRESETS, Site, sites
from mergelab.repair.statistics import Batch, Statistics, run, statistics
from mergelab.repair.story import channels, repair

__all__ = [
    "FEWEST", "MODES", "MOST", "PRESETS", "Batch", "Corrected", "Folded", "How", "Patch", "Site", "Statistics",
    "applied", "channels", "fit", "fold", "joined", "mean_goals", "repair", "run", "sites", "statistics",
]  # fmt: skip
