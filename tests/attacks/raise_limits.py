# process | raises its own limits again | right: Error | shown: without seccomp+rlimits
import resource

resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print("ESCAPED")
