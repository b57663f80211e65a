"""`python -m rgalign.cli`: the command line where a launcher wants a module (`accelerate launch -m`)."""

from rgalign.cli import main

main()
