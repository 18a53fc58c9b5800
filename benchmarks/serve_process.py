"""A server of its own for the benchmarks: started, watched, ended."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit


class Server:
    """A running `maskedclip serve`.  host, port: where it listens.  rss: (seconds, bytes) by time."""

    def __init__(self, process: subprocess.Popen[str], address: str, log: list[str]) -> None:
        parts = urlsplit(address)
        assert parts.hostname is not None
        assert parts.port is not None
        self.process, self.address, self.log = process, address, log
        self.host, self.port = parts.hostname, parts.port
        self.rss: list[tuple[float, int]] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def memory(self) -> int:
        """Resident bytes now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024

    def seconds(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        while self.process.poll() is None:
            try:
                self.rss.append((time.monotonic(), self.memory()))
            except (OSError, IndexError):
                return
            time.sleep(0.5)

    def median_memory(self, since: float, until: float) -> float:
        """Median of the resident bytes between two times."""
        values = sorted(value for at, value in self.rss if since <= at <= until)
        return float(values[len(values) // 2]) if values else float("nan")


def machine_seconds() -> tuple[float, float]:
    """Processor time of the whole machine so far: in use, and taken away by its host."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick


@contextmanager
def serving(run: Path, arguments: Sequence[str] = ()) -> Iterator[Server]:
    """`maskedclip serve RUN` on a free port of this machine."""
    command = [sys.executable, "-m", "maskedclip", "serve", str(run), "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    log: list[str] = []
    stderr = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
    stderr.start()
    address = ""
    for line in process.stdout:
        found = re.search(r"http://[\d.:\[\]a-f]+", line)
        if found:
            address = found[0]
            break
    if not address:
        process.wait()
        stderr.join(5)
        raise SystemExit("".join(log) or "the server did not start")
    try:
        yield Server(process, address, log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def form(parts: Sequence[tuple[str, bytes, str | None]]) -> tuple[bytes, str]:
    """A multipart body and its content type.  parts: name, value, file name or None."""
    boundary = "maskedclip-benchmark-3f9a"
    body = b""
    for name, value, file in parts:
        where = f'; filename="{file}"' if file is not None else ""
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{where}\r\n\r\n'.encode() + value + b"\r\n"
        )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
