import sys

from prefilter_common.cli import exit_code
from prefilter_common.scoring.streaming import main

sys.exit(exit_code(main))
