"""`python -m floq` is the `floq` command."""

import os
import sys


def main() -> None:
    """Run the command. Ctrl-C while Python still reads the program ends it as quietly as later."""
    # With AVX-512, XLA warns of each kept program that it might not run here, though it was made here (openxla/xla
    # 44565). JAX reads this when it is imported; what fails raises an exception all the same.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        from floq.cli import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    try:
        sys.stdout.flush()
    except OSError:  # the reader is gone; Python would complain again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
