# process | continues in an exit hook | right: exited|SystemExit | shown: plain
import atexit
import sys

atexit.register(print, "ESCAPED")
sys.exit(0)
