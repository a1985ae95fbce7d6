"""Processes that start at once: each is forked from one that has imported what they need, once."""
import contextlib, multiprocessing, os, signal, subprocess

READY = multiprocessing.get_context("forkserver")

class Job(READY.Process):
    """`function(*args)` in a process group of its own, with what `subprocess.Popen` has; it speaks
    into the file `said`."""
    def __init__(self, function, *args, said, env=None):
        super().__init__(target=function, args=args, daemon=False)
        self.told = said, env
        self.start()

    def run(self):
        said, env = self.told
        os.setsid()
        for stream in (1, 2): os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), stream)
        if env is not None: os.environ.clear(); os.environ.update(env)
        signal.signal(signal.SIGINT, signal.default_int_handler) # also where the caller ignores it
        # its own children begin as those of any program
        multiprocessing.set_start_method(None, force=True)
        super().run()

    returncode = property(lambda self: self.exitcode)
    def poll(self): return self.exitcode
    def send_signal(self, number): os.kill(self.pid, number)

    def wait(self, seconds=None):
        self.join(seconds)
        if self.exitcode is None: raise subprocess.TimeoutExpired(self.name, seconds)

def end(p):
    "Kill a job with all that it has started."
    with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)
