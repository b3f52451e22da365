"""python -m bbu.cli"""

import sys

from bbu.cli import main

sys.exit(main())
