"""The version of the package, as installed and as written into configs and metrics."""

VERSION = "0.1.0"
