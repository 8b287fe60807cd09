"""`python -m ptune`, and with it `torchrun -m ptune` and `accelerate launch -m ptune`."""

from ptune.cli.app import main

if __name__ == "__main__":
    main()
