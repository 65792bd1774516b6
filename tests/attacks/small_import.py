# interpreter | imports what reaches the machine | right: ModuleNotFoundError | shown: plain
import subprocess

print("ESCAPED")
