# process | raises an error with a message of many megabytes | right: ValueError: x | shown: none: nothing to switch off
raise ValueError("x" * 50_000_000)
