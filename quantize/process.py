"""The one way to start a Python child: it dies with its parent, however the parent died (`kill -9` of a
runner leaves nothing running), and imports nothing from the working directory, which may be a downloaded
checkpoint with a click.py in it.

The child asks the kernel for a SIGKILL at its parent's death (PR_SET_PDEATHSIG) before it runs anything else.
The kernel ties that to the *thread* that started the child, so children are started from threads that live as
long as they are wanted.
"""

import ctypes
import os
import runpy
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
CLEARING_SECONDS = 20  # how long a child that is asked to end has to remove what it has begun


#: what -P does, which Python 3.10 does not know, before anything but sys is imported
_SAFE_PATH = (
    "import sys; sys.path[:] = [p for p in sys.path if p not in ('', '.')]; del sys.argv[1]; "
    "from quantize.process import main; main()"
)
_START = (
    ("-P", "-m", "quantize.process")
    if sys.version_info >= (3, 11)
    else ("-c", _SAFE_PATH, "quantize.process")
)


def child_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``python -m module arguments...`` as a child bound to this process."""
    return [sys.executable, *_START, str(os.getpid()), module, *arguments]


#: for any program: what ``die_with`` does survives the call that turns this process into that one
_TIED = (
    "import ctypes, os, sys; parent = int(sys.argv[1]); "
    "sys.platform.startswith('linux') and ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); "
    "os.getppid() == parent or os._exit(137); os.execv(sys.argv[2], sys.argv[2:])"
)


def tied_command(program: str, *arguments: str) -> list[str]:
    """The command line that runs ``program``, a path, as a child bound to this process."""
    return [sys.executable, "-I", "-c", _TIED, str(os.getpid()), program, *arguments]


def isolated_command(program: str) -> list[str]:
    """The command line that runs Python source of somebody else's: no environment variables, no working
    directory, no user's packages."""
    return [sys.executable, "-I", "-c", program]


def isolated_module(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``python -m module arguments...`` in the same way."""
    return [sys.executable, "-I", "-m", module, *arguments]


def child_environment(**extra: str) -> dict[str, str]:
    """This environment, with the interpreter's own bin on PATH (kernels built on first use look for ninja
    there) and without the working directory on the import path (a folder of results may hold anything)."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    return {**os.environ, "PATH": path, "PYTHONSAFEPATH": "1", **extra}  # the last for what the child starts


def die_with(parent: int) -> None:
    """SIGKILL this process when ``parent``, which must be its parent, dies. On other systems than Linux:
    nothing."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call above
        os.kill(os.getpid(), signal.SIGKILL)


def run_child(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``child_command`` run to its end, its stdout kept. A signal that ends this process ends it too, after
    it has cleared up."""
    command = child_command(module, *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment()) as process:
        try:
            out, _ = process.communicate()
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):  # Ctrl-C reaches all processes of the terminal
                process.terminate()
            try:
                process.wait(CLEARING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out)


def peak_rss_bytes(pid: int | None = None) -> int:
    """VmHWM: the most physical memory that the process has held, mapped files included. 0 where it cannot be
    read.

    Not ``ru_maxrss``, which a child inherits from the process that started it.
    """
    try:
        with open(f"/proc/{pid or 'self'}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if pid is None:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return 0


def main() -> None:
    parent, module = int(sys.argv[1]), sys.argv[2]
    die_with(parent)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
