# process | aborts | right: crashed | shown: none: a crash is a crash
import os

os.abort()
