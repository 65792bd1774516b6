# process | has the library read the file | right: nothing | shown: without landlock
import linecache

lines = linecache.getlines(SECRET)
print("ESCAPED" if lines else "nothing", lines)
