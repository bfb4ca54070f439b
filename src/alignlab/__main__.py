"""`python -m alignlab` is the command `alignlab`."""

from alignlab.app.cli import main

if __name__ == "__main__":
    main()
