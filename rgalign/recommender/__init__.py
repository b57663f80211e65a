"""Recommender: what a serving process embeds. docs/recommender.md.

recommender = rgalign.load("bundle")
answer = recommender.recommend({"page": "orders"}, k=3)
"""

from rgalign.recommender.answer import Health as Health
from rgalign.recommender.answer import Intent as Intent
from rgalign.recommender.answer import RankedIntent as RankedIntent
from rgalign.recommender.answer import Recommendation as Recommendation
from rgalign.recommender.answer import Timings as Timings
from rgalign.recommender.config import BreakerConfig as BreakerConfig
from rgalign.recommender.config import RecommenderConfig as RecommenderConfig
from rgalign.recommender.recommender import Recommender as Recommender
from rgalign.recommender.recommender import engine_of as engine_of
from rgalign.recommender.recommender import load as load
from rgalign.recommender.recommender import without_reasoner as without_reasoner
