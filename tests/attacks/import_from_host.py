# process | puts a folder of the host on sys.path and imports from it | right: ModuleNotFoundError | shown: without landlock
import sys

sys.path.insert(0, PLACE)
import stolen

print("ESCAPED", stolen.VALUE)
