"""reactune: from what users did with generated tips to a better tip generator."""

__version__ = "0.1.0"
