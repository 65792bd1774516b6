# process | looks for the harness's modules in its own process | right: nothing | shown: none: nothing to switch off
import sys

found = [name for name in sys.modules if name in ("pytest", "torch", "fledgling.sandbox.verdict")]
print("ESCAPED" if found else "nothing")
