# process | ignores every signal it may and sleeps past its time | right: timed out | shown: plain
import signal
import time

for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
time.sleep(1.2)
print("ESCAPED")
