# interpreter | sleeps past its time | right: DONE | shown: none: sleeping takes no time there
import time

time.sleep(3600)
print("DONE")
