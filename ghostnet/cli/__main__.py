"""`python -m ghostnet.cli`."""

from ghostnet.cli.main import main

main()
