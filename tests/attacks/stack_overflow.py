# process | lifts the bound and recurses through C until the stack ends | right: crashed|MemoryError|RecursionError | shown: none: ends the process in any case
import sys

sys.setrecursionlimit(10**9)


class Deep:
    def __repr__(self):
        return repr(self)


repr(Deep())
