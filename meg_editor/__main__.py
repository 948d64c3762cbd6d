"""python -m meg_editor"""

import sys

from meg_editor.cli import main

sys.exit(main())
