"""`python -m nestflow` is the command `nestflow`."""

from nestflow.cli.main import main

if __name__ == "__main__":
    main()
