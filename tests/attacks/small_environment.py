# interpreter | looks for secrets in the environment | right: RuntimeError | shown: plain
import os

print("ESCAPED", os.environ["FLEDGLING_ATTACK_SECRET"])
