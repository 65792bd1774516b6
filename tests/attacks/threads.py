# process | starts a thread | right: can't start new thread | shown: without seccomp+rlimits
import threading

thread = threading.Thread(target=print, args=("ESCAPED",))
thread.start()
thread.join()
