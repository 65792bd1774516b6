# process | sleeps past its time | right: timed out | shown: plain
import time

time.sleep(1.2)
print("ESCAPED")
