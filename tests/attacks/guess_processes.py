# process | guesses process numbers | right: nothing | shown: without namespaces+landlock
import os

found = os.path.exists(f"/proc/{HARNESS}")
print("ESCAPED" if found or os.getppid() > 1 else "nothing")
