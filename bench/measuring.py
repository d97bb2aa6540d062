"""What the benchmarks share: the rates that the stages print."""

import re


def training_rates(output: str, network: str) -> list[float]:
    """Images per second of each epoch, from the output of train.py."""
    return [float(rate) for rate in re.findall(rf"^{network} epoch .* ([\d.]+) images/s", output, re.MULTILINE)]


def inference_rate(output: str, network: str) -> float:
    """Images per second, from the output of evaluate.py."""
    return float(re.search(rf"^{network}: ([\d.]+) images/s", output, re.MULTILINE)[1])
