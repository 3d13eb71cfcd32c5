"""python examples/01_rank_a_folder.py FOLDER "a lemon on the beach"

Rank images that you have already: the Python behind `sp-rerank rank FOLDER --prompt ...`. Runs offline.
"""

import sys

from sp_rerank import load_scorer, rank
from sp_rerank.storage.image_files import find_images
from sp_rerank.storage.images import open_image


def main(folder: str, prompt: str) -> None:
    files = find_images([folder]).files
    scorer = load_scorer("clip-mini")
    for best in rank(scorer, prompt, [open_image(file) for file in files], top_k=5):
        print(f"{best.rank}  {best.score:.4f}  {files[best.candidate.index].name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
