"""`python -m floq` is the `floq` command."""

from floq.cli import main

if __name__ == "__main__":
    main()
