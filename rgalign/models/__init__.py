"""The rankers: QE-Rec's three towers and the two-tower baseline, with their loss.

ranker = build_ranker(config, schema, catalog, latent_dim, semantic)
save_weights(ranker, path);  ranker = load_weights(path, config, schema, catalog)
"""

from rgalign.models.baseline import BaselineConfig
from rgalign.models.build import RankerConfig, build_ranker, load_weights, save_weights
from rgalign.models.qe_rec import QERecConfig
from rgalign.models.ranker import Loss, Ranker, Scores

__all__ = [
    "BaselineConfig",
    "Loss",
    "QERecConfig",
    "Ranker",
    "RankerConfig",
    "Scores",
    "build_ranker",
    "load_weights",
    "save_weights",
]
