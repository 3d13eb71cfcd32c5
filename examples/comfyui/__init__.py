"""A node for ComfyUI: copy this folder to ComfyUI/custom_nodes/sp_rerank and `pip install sp-rerank` beside ComfyUI."""

from .best_of_images import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
