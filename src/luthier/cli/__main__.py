"""`python -m luthier.cli`, which is how stages are started."""

from luthier.cli import main

main()
