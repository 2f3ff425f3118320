"""The command line: arguments in, one call, one line out.

What the commands do is left to the modules they call, each imported only when its command runs.
"""

from reactune.cli.entry import main as main
