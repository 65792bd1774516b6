# process | ends with a value of many megabytes | right: xxxx | shown: none: nothing to switch off
"x" * 50_000_000
