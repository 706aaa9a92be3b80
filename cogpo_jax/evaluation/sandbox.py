"""Runs a program that nobody has read, so that it can harm itself only: `python -I sandbox.py < job.json`.

The job is {program, inputs, seconds, megabytes, root}; the answer is a JSON list of {stdout, error}, one for each input
until one fails. Linux only, standard library only. What keeps the program in:
- namespaces of its own for processes, mounts, network (no interface is up), System V objects and host name;
- a root folder in memory that holds /usr, the libraries and this Python, read-only, and an empty /box to write in:
  home folders, /work, /etc and /proc do not exist there;
- a user of its own without any capability, and no way to gain one (no_new_privs);
- limits of CPU time, address space, processes, file size and output; all its processes are killed after each input.
It shares the kernel, the CPU and the memory of the machine: a hole in the kernel is not closed by this.
"""

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PROCESSES, _OUTPUT, _BOX = 16, 4 << 20, 64  # processes of the program; bytes of output; MiB that it may write
WALL = 4  # a program may wait, or share its core with others: seconds by the clock for each second of CPU
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Reads the job, makes the namespaces, runs the program on each input inside them, prints the outcomes."""
    job = json.load(sys.stdin)
    user = 100_000 + os.getpid() % 1_000_000  # limits of processes are counted by user: each sandbox has its own
    flags = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS
    outer = os.geteuid(), os.getegid()
    if outer[0] != 0:
        user = 1000
        _unshare(flags | _NEWUSER)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {outer[0]} 1"),
            ("gid_map", f"{user} {outer[1]} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as f:
                f.write(text)
    else:
        _unshare(flags)
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # when this first process goes, the kernel ends the rest
    with open("/proc/self/oom_score_adj", "w") as f:
        f.write("1000")  # out of memory: this goes first
    python = _make_root(job["root"], user, job["program"])
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    outcomes: list[dict[str, str]] = []
    for text in job["inputs"]:
        outcomes.append(_run([python, "-I", "-B", "/box/program.py"], text.encode(), user, job))
        if outcomes[-1]["error"]:
            break
    print(json.dumps(outcomes), flush=True)


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare: no namespaces here")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = [text.encode() if text else None for text in (source, target, kind)]
    if _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() if data else None):
        raise OSError(ctypes.get_errno(), f"mount {source or kind} on {target}")


def _make_root(root: str, user: int, program: str) -> str:
    """Builds the root folder and goes into it; returns the path of Python there."""
    _mount("", "/", "", _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    python = Path(sys.executable).resolve()  # of a virtual environment: the one it was made from
    base = str(python.parents[1])
    for path in ("/usr", "/lib", "/lib64", "/lib32", "/bin", base, "/dev/null", "/dev/zero", "/dev/urandom"):
        there, target = Path(path), Path(root + path)
        if there.is_symlink():
            target.symlink_to(there.readlink())
        elif there.exists() and not target.exists():
            _show(there, target)
    for name in ("box", "tmp"):
        folder = Path(root, name)
        folder.mkdir()
        _mount("tmpfs", str(folder), "tmpfs", _NOSUID | _NODEV, f"size={_BOX}m,mode=700")
        os.chown(folder, user, user)
    Path(root, "box", "program.py").write_text(program, encoding="utf-8", errors="replace")
    _mount("", root, "", _REMOUNT | _RDONLY | _NOSUID | _NODEV, "size=1m,mode=755")
    os.chroot(root)
    os.chdir("/box")
    return str(python)


def _show(path: Path, target: Path) -> None:
    """The file or folder `path` at `target`, read-only."""
    (target if path.is_dir() else target.parent).mkdir(parents=True, exist_ok=True)
    if not path.is_dir():
        target.touch()
    _mount(str(path), str(target), "", _BIND)
    kept = os.statvfs(target).f_flag & (_NODEV | _NOEXEC)  # a mount's own restrictions cannot be taken off
    _mount("", str(target), "", _REMOUNT | _BIND | _RDONLY | _NOSUID | kept | (_NODEV if path.is_dir() else 0))


def _run(command: list[str], text: bytes, user: int, job: dict) -> dict[str, str]:
    given = os.memfd_create("stdin")
    os.write(given, text)
    os.lseek(given, 0, os.SEEK_SET)
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            for number, fd in enumerate((given, out_end, err_end)):
                os.dup2(fd, number)
            os.closerange(3, 256)
            _drop(user, job["seconds"], job["megabytes"])
            os.execve(command[0], command, {"PATH": "/usr/bin:/bin", "HOME": "/box", "TMPDIR": "/tmp"})
        finally:
            os._exit(127)
    for fd in (given, out_end, err_end):
        os.close(fd)
    end = time.monotonic() + WALL * job["seconds"] + 2
    texts = {out: bytearray(), err: bytearray()}
    error, reading = "", [out, err]
    while reading and not error:
        ready = select.select(reading, [], [], max(0.0, end - time.monotonic()))[0]
        for fd in ready:
            part = os.read(fd, 1 << 16)
            texts[fd] += part
            if not part:
                reading.remove(fd)
        if max(map(len, texts.values())) > _OUTPUT:
            error = "output limit"
        elif not ready and reading:
            error = "time limit"
    if not reading:  # its output is closed; it may still run
        while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) and time.monotonic() < end:
            time.sleep(0.002)
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    os.kill(-1, signal.SIGKILL)  # everything in here but this process
    _, status, usage = os.wait4(child, 0)
    _reap()
    os.close(out)
    os.close(err)
    code = os.waitstatus_to_exitcode(status)
    if usage.ru_utime + usage.ru_stime >= job["seconds"] or not ended:
        error = error or "time limit"
    last = texts[err].decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {code}"]
    if code and not error:
        error = "memory limit" if last[0].startswith("MemoryError") else last[0][:200]
    return {"stdout": texts[out].decode(errors="replace"), "error": error}


def _drop(user: int, seconds: float, megabytes: int) -> None:
    """Limits first, then the user; what is left is a process without any right."""
    cpu, memory = int(seconds) + 1, megabytes << 20
    for limit, value in (
        (resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, memory), (resource.RLIMIT_NPROC, _PROCESSES),
        (resource.RLIMIT_FSIZE, _BOX << 20), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64),
    ):  # fmt: skip
        resource.setrlimit(limit, (value, value))
    os.setsid()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _reap() -> None:
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
