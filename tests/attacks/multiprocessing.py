# process | starts a pool of processes | right: Error | shown: without landlock+seccomp+rlimits
import multiprocessing

context = multiprocessing.get_context("fork")
process = context.Process(target=print, args=("ESCAPED",))
process.start()
process.join()
print("ESCAPED")
