"""Scorers, from a name to numbers: the registry, the published architectures, and what every scorer must keep.

Importing it imports neither torch nor a model library.
"""

from sp_rerank.scorers.registry import available_scorers, check_spec, load_scorer, resolve_sp, resolve_spec

__all__ = ["available_scorers", "check_spec", "load_scorer", "resolve_sp", "resolve_spec"]
