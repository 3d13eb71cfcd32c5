"""What a person asks for and what a run is: values, checked where they are made. Knows no model, scorer or file."""

from sp_rerank.config.checkpoint import CheckpointKeywords, CheckpointOptions, Provenance
from sp_rerank.config.options import GenerationKeywords, GenerationOptions
from sp_rerank.config.rules import MAX_SEED, PROMPT
from sp_rerank.config.run_config import Part, RunConfig
from sp_rerank.config.search_plan import EXHAUSTIVE, FAST, SEARCHES, STEERING, Round, SearchPlan, Stage, StopRules

__all__ = [
    "EXHAUSTIVE",
    "FAST",
    "MAX_SEED",
    "PROMPT",
    "SEARCHES",
    "STEERING",
    "CheckpointKeywords",
    "CheckpointOptions",
    "GenerationKeywords",
    "GenerationOptions",
    "Part",
    "Provenance",
    "Round",
    "RunConfig",
    "SearchPlan",
    "Stage",
    "StopRules",
]
