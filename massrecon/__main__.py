"""``python -m massrecon``: the same as the command ``massrecon``."""

from massrecon.cli import main

if __name__ == "__main__":
    main()
