"""The embedded model: `pipeline/` in Stable Diffusion's layout, `clip/` the scorer. Made by sp_rerank.train.mini."""
