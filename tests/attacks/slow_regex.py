# process | has a regular expression try all ways | right: timed out | shown: none: would take years
import re

re.match("(a+)+b", "a" * 60)
