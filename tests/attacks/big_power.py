# process | computes a number that fills the memory | right: timed out|MemoryError | shown: none: would take all memory
9**9**9
