"""python -m meg_editor"""

import sys

from meg_editor.cli.main import entry

sys.exit(entry())
