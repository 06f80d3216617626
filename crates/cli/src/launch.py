# torchrun, as `highroad train` starts it: it ends with the command that started it, however that ends.
import os
import runpy
import signal
import sys
import threading


def watch():
    # Nothing is ever written to it: reading ends when the command that holds the other end is gone.
    os.read(pipe, 1)
    abandoned.set()
    os.kill(os.getpid(), signal.SIGTERM)


abandoned = threading.Event()
# Scripts find nothing on stdin, and hold no end of the pipe.
pipe = os.dup(0)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
# Until torchrun has a handler of its own.
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
threading.Thread(target=watch, daemon=True).start()
try:
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
finally:
    if abandoned.is_set():
        from highroad._run import end_abandoned

        end_abandoned()
