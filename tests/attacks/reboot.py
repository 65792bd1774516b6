# process | asks for a reboot, with arguments that do nothing | right: refused | shown: none: would be out of proportion
import ctypes
import os

number = {"x86_64": 169, "aarch64": 142}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, 0, 0, 0, None)
print("ESCAPED" if found >= 0 else "refused")
