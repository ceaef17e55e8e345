"""`python -m ghostnet`: the same as the command `ghostnet`."""

from ghostnet.cli.main import main

if __name__ == "__main__":
    main()
