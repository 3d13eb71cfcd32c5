"""How the budget for N candidates is spent: one signature for every strategy, so any swaps for any."""

from sp_rerank.search.base import Known, Scored, Strategy
from sp_rerank.search.exhaustive import exhaustive
from sp_rerank.search.screening import screening

__all__ = ["Known", "Scored", "Strategy", "exhaustive", "screening"]
