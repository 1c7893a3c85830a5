"""`python -m encoder_node`."""

from encoder_node.cli import main

if __name__ == "__main__":
    main()
