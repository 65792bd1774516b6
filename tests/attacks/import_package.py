# process | imports a package of the host, and with it native code | right: ModuleNotFoundError | shown: plain
import numpy

print("ESCAPED", numpy.__version__)
