"""The page on which a person answers which of two images is better: one local server, links for several people."""
