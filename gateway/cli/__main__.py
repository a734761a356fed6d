"""``python -m gateway.cli`` is ``copilot-gateway``."""

import sys

from gateway.cli.main import main

sys.exit(main())
