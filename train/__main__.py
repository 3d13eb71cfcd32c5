"""accelerate launch -m sp_rerank.train RECIPE --data PLACE --out FOLDER: `sp-rerank train` on several processes.

On CPUs `torchrun --nproc-per-node 2 -m sp_rerank.train`: accelerate starts one process there, whatever number is asked.
"""

import sys

from sp_rerank.cli import main

sys.argv[1:1] = ["train"]
main()
