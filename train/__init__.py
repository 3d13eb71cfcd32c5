"""How the models are made; imported as sp_rerank.train."""
