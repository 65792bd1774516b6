# process | looks for secrets in the environment | right: nothing | shown: plain
import os

found = os.environ.get("FLEDGLING_ATTACK_SECRET")
print("ESCAPED" if found or os.environ else "nothing")
