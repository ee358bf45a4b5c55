"""Running commands in a `.venv`, with their output in a log and their progress on the screen."""

import json
import os
import subprocess
import sys
import time

from setup_env_checks import SetupError, explain_failure


class Commands:
    """What runs in the `.venv` of one checkout.

    Attributes:
        root: folder of the checkout.
        path: the `.venv` in it.
        lock: open file that keeps other runs out, if one is held.
    """

    def __init__(self, root):
        self.root = root
        self.path = os.path.join(root, ".venv")
        self.python = os.path.join(self.path, "bin", "python")
        self.log = os.path.join(self.path, "setup.log")
        self.scratch = os.path.join(self.path, "tmp")
        self.start = time.time()
        self.lock = None

    def say(self, text):
        print(f"[{time.time() - self.start:4.0f} s] {text}", flush=True)

    def ask(self, code, python=None):
        """The answer of an interpreter to one of the snippets, or None where it does not run."""
        command = [python or self.python, "-c", code]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            done = subprocess.run(command, cwd="/", env=self.variables(), check=False, **pipes)
        except OSError:
            return None
        return json.loads(done.stdout.decode().splitlines()[-1]) if done.returncode == 0 else None

    def pip(self, title, *arguments):
        self.run(title, [self.python, "-m", "pip", "install", *arguments])

    def run(self, title, command, cwd=None):
        """Run one command, its output going to the log; raise SetupError if it fails."""
        self.say(title)
        os.makedirs(self.scratch, exist_ok=True)
        with open(self.log, "ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            begin = log.tell()
            # The child holds the lock too: should this process be killed, the next `make setup`
            # waits for the child's end.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd or self.root,
                env=self.variables(),
                pass_fds=[self.lock.fileno()] if self.lock else [],
            )
            self.watch(process, begin)
        if process.returncode:
            log = os.path.relpath(self.log, self.root)
            raise SetupError(explain_failure(title, self.logged(begin), log))

    def watch(self, process, begin):
        """Wait for ``process``, showing the newest line of its log now and then."""
        live = sys.stdout.isatty()
        while True:
            try:
                process.wait(timeout=1 if live else 20)
                break
            except subprocess.TimeoutExpired:
                lines = self.logged(begin).splitlines() or [""]
                text = f"[{time.time() - self.start:4.0f} s]   {lines[-1].strip()}"[:79]
                print(text.ljust(79), end="\r" if live else "\n", flush=True)
        if live:
            print(" " * 79, end="\r", flush=True)

    def logged(self, begin):
        with open(self.log, "rb") as log:
            log.seek(begin)
            return log.read().decode("utf-8", "replace").strip()

    def variables(self):
        """Environment variables for the commands we run."""
        env = dict(os.environ, TMPDIR=self.scratch, GIT_TERMINAL_PROMPT="0")
        env.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_USER="0")
        env.update(PIP_PROGRESS_BAR="off")
        for name in ("PIP_TARGET", "PIP_PREFIX", *(() if self.is_shared() else ("PYTHONPATH",))):
            env.pop(name, None)
        return env

    def is_shared(self):
        """Whether `.venv`, if it exists, sees packages from outside."""
        settings = os.path.join(self.path, "pyvenv.cfg")
        if not os.path.isfile(settings):
            return True
        with open(settings, encoding="utf-8") as stream:
            return "include-system-site-packages = true" in stream.read()
