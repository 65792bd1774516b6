# process | stays in one call of C that never looks at signals | right: timed out | shown: none: never ends
sum(1 for _ in iter(int, 1))
