# process | forks without end | right: PermissionError | shown: none: would take the machine down
import os

while True:
    os.fork()
