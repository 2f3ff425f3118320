"""Where things lie that tests read: the repository, its tests and benchmarks, the real data."""

from pathlib import Path

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
BENCH = REPOSITORY / "bench"
DOCS = REPOSITORY / "docs"
SHARED = REPOSITORY.parent / "shared"
