"""Which versions of packages are at work."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

FROM_SOURCE = "from source"


def version(package: str) -> str:
    """The version of an installed package; of floq, "from source" where it runs without being installed."""
    try:
        return installed(package)
    except PackageNotFoundError:
        if package != "floq":
            raise
        return FROM_SOURCE
