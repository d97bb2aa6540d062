"""How many photos per second `serve` classifies for many clients at once, compared with `predict` on the same photos.

Usage, from the root of a project with trained models: python bench/serve.py ARCHIVE [--clients 32] [--photos 20000]
Starts tools/serve.py on a free port of this computer, and ends it. Each round measures `predict`, then serve with 1
photo in each request, and with 16. Then the clients send --photos more, one at a time, for the server's memory; last,
SIGTERM arrives while they are sending. The clients take part of the CPU, so with few cores serve's rate is too low.
"""

import argparse
import http.client
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.core.command_line import ArgumentParser
from pipeline.core.process import run_stage
from pipeline.inference.ensemble import Ensemble, InputPhoto, load_ensemble
from pipeline.photos.source import PhotoSource
from watching import private_memory

import numpy as np
import psutil

SERVE = Path(__file__).resolve().parents[1] / "tools/serve.py"
EACH = (1, 16)  # photos in a request
MOST_READ = 1000  # photos of the archive, which are sent again and again
SAMPLES = 100  # of memory
BOUNDARY = "end-of-a-photo"


@dataclass
class Tally:
    """What the clients of a load have seen."""

    seconds: list[float] = field(default_factory=list)  # of each answered request
    photos: int = 0  # answered
    refused: int = 0  # connections, after which a client stops
    lost: int = 0  # requests that were sent, but not answered with one answer for each photo


def main() -> None:
    arguments = read_arguments()
    with PhotoSource(arguments.archive) as source:
        photos = [source.read(photo) for photo in source.photos()[:MOST_READ]]
    ensemble = load_ensemble()
    predict_rate(ensemble, photos[:100])  # a warm-up
    with serving() as (port, server):
        send(port, photos, arguments.clients, 1, 100)
        table = [*measure_rates(ensemble, photos, port, arguments)]
        memory = measure_memory(photos, port, psutil.Process(server.pid), arguments)
        stop = measure_stop(photos, port, server, arguments)
    print(f"{arguments.clients} clients, {arguments.rounds} rounds of {arguments.sample} photos\n")
    print("\n".join(["| | photos/s | of predict's | p50, ms | p99, ms |", "| --- | --- | --- | --- | --- |", *table]))
    print(f"\n{memory}\n{stop}")


def read_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("archive", type=Path, help="a folder or archive of photos")
    parser.add_argument("--clients", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--photos", type=int, default=20_000, help="for the memory (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=1000, help="photos of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    return parser.parse_args()


@contextmanager
def serving() -> Iterator[tuple[int, subprocess.Popen]]:
    command = [sys.executable, SERVE, "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout  # for the type checker
            yield int(server.stdout.readline().split()[0].rpartition(":")[2]), server
        finally:
            server.terminate()


def measure_rates(ensemble: Ensemble, photos: list[bytes], port: int, arguments: argparse.Namespace) -> Iterator[str]:
    """The rows of the table: medians of the rounds."""
    predict, rates, seconds = [], {each: [] for each in EACH}, {each: [] for each in EACH}
    for _ in range(arguments.rounds):
        predict.append(predict_rate(ensemble, [*islice(cycle(photos), arguments.sample)]))
        for each in EACH:
            start = time.perf_counter()
            tally = send(port, photos, arguments.clients, each, arguments.sample)
            rates[each].append(tally.photos / (time.perf_counter() - start))
            seconds[each] += tally.seconds
    base = statistics.median(predict)
    yield f"| predict | {base:.1f} | 1.00 | | |"
    for each in EACH:
        ratio = statistics.median(rate / other for rate, other in zip(rates[each], predict, strict=True))
        p50, p99 = 1000 * np.percentile(seconds[each], (50, 99))
        name = f"serve, {each} photo{'s' if each > 1 else ''} in a request"
        yield f"| {name} | {statistics.median(rates[each]):.1f} | {ratio:.2f} | {p50:.0f} | {p99:.0f} |"


def predict_rate(ensemble: Ensemble, photos: list[bytes]) -> float:
    inputs = [InputPhoto(str(number), partial(bytes, photo)) for number, photo in enumerate(photos)]
    start = time.perf_counter()
    for _ in ensemble.predict(inputs, keep_pixels=False):
        pass
    return len(photos) / (time.perf_counter() - start)


def measure_memory(photos: list[bytes], port: int, server: psutil.Process, arguments: argparse.Namespace) -> str:
    """The memory of the server and the processes that decode for it, while it answers many photos."""
    sizes, samples = [memory_of(server)], min(SAMPLES, arguments.photos)
    for part in range(samples):
        count = arguments.photos * (part + 1) // samples - arguments.photos * part // samples
        send(port, photos, arguments.clients, 1, count)
        sizes.append(memory_of(server))
    tenths = ", ".join(f"{sizes[samples * part // 10]:.0f}" for part in range(11))
    return f"memory over {arguments.photos} photos, MB: {tenths}; at most {max(sizes):.0f}"


def memory_of(server: psutil.Process) -> float:
    return sum(map(private_memory, (server, *server.children(recursive=True))))


def measure_stop(photos: list[bytes], port: int, server: subprocess.Popen, arguments: argparse.Namespace) -> str:
    """SIGTERM while all clients are sending."""
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        tally = pool.submit(send, port, photos, arguments.clients, 1, 10**9, begun)
        begun.wait()
        server.send_signal(signal.SIGTERM)
        status = server.wait()
        end = tally.result()
    return (
        f"SIGTERM during the load: {len(end.seconds)} requests answered, {end.lost} lost; then {end.refused} of "
        f"{arguments.clients} clients refused; exit status {status}"
    )


def send(
    port: int, photos: list[bytes], clients: int, each: int, count: int, begun: threading.Event | None = None
) -> Tally:
    """Have `clients` send `count` photos in all, `each` in a request, until all are answered or they are refused.

    `begun` is set once as many requests have been answered as there are clients.
    """
    tally, lock = Tally(), threading.Lock()
    left = iter(range(0, count, each))

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            with lock:
                first = next(left, None)
            if first is None:
                break
            some = [photos[number % len(photos)] for number in range(first, first + each)]
            outcome, seconds = request(connection, some)
            if outcome == "closed":  # while it was idle, perhaps; HTTP clients try again (RFC 9112, 9.3.1)
                outcome, seconds = request(connection, some)
            with lock:
                if outcome == "answered":
                    tally.seconds.append(seconds)
                    tally.photos += each
                    if begun and len(tally.seconds) >= clients:
                        begun.set()
                elif outcome == "refused":
                    tally.refused += 1
                    break
                else:
                    tally.lost += 1
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def request(connection: http.client.HTTPConnection, photos: list[bytes]) -> tuple[str, float]:
    """The outcome, `answered`, `refused` (no connection), `closed` (before an answer) or `lost`, and the seconds."""
    body, kind = photos[0], "application/octet-stream"
    if len(photos) > 1:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="photos"; filename="photo"\r\n\r\n'.encode()
        body = b"".join(head + photo + b"\r\n" for photo in photos) + f"--{BOUNDARY}--\r\n".encode()
        kind = f"multipart/form-data; boundary={BOUNDARY}"
    start = time.perf_counter()
    try:
        if connection.sock is None:
            connection.connect()
    except OSError:
        return "refused", 0.0
    response = None
    try:
        connection.request("POST", "/predict", body, {"Content-Type": kind})
        response = connection.getresponse()
        answers = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        connection.close()
        return ("lost" if response else "closed"), 0.0
    is_whole = response.status == 200 and len(answers) == len(photos)
    return ("answered" if is_whole else "lost"), time.perf_counter() - start


if __name__ == "__main__":
    run_stage(main)
