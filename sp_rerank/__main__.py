"""python -m sp_rerank: the command line."""

from sp_rerank.cli import main

main()
