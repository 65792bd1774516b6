# verdict | has a thread end the process with success | right: can't start new thread | shown: naive
import os
import threading
import time

threading.Thread(target=lambda: (time.sleep(0.05), os._exit(0)), daemon=True).start()


def double(number):
    time.sleep(1)
