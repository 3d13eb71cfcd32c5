"""Pure numbers: orders, agreement, best of n, diversity, stopping. Knows nothing of images, models or files."""
