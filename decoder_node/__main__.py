"""`python -m decoder_node`."""

from decoder_node.cli import main

if __name__ == "__main__":
    main()
