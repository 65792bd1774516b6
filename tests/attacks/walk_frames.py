# process | walks the frames to the one that runs it and reads a file from there | right: PermissionError | shown: without landlock
import sys

frame = sys._getframe()
while frame.f_back:
    frame = frame.f_back
print("ESCAPED", frame.f_builtins["open"](SECRET).read())
