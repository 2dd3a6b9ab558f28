"""`python -m dsv4` is the command `dsv4`."""

from dsv4.cli.__main__ import main

if __name__ == "__main__":
    main()
