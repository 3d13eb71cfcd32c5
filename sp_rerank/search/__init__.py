"""How the budget for N candidates is spent: one signature for every strategy, so any swaps for any.

strategy(sampler, score, seeds, *, top_k) -> Iterator[(Batch, scores)]
"""

from sp_rerank.search.exhaustive import exhaustive

STRATEGIES = {"exhaustive": exhaustive}

__all__ = ["STRATEGIES", "exhaustive"]
