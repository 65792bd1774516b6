# process | looks for the program that ran before it | right: nothing | shown: none: nothing to switch off
import gc

found = [text for text in gc.get_objects() if isinstance(text, str) and "MARK-OF-AN-EARLIER" + "-JOB" in text]
print("ESCAPED" if found else "nothing")
