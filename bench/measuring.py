"""What the benchmarks share: the rates that the stages print."""

import re


def training_rates(output: str, network: str) -> list[float]:
    """Images per second of each epoch, from the output of train.py."""
    return [float(rate) for rate in re.findall(rf"^{network} epoch .* ([\d.]+) images/s", output, re.MULTILINE)]


def inference_rate(output: str, network: str) -> float:
    """Images per second, from the output of evaluate.py."""
    return find_number(rf"^{network}: ([\d.]+) images/s", output)


def decoding_rate(output: str) -> float:
    """Photos per second, from the output of prepare.py."""
    return find_number(r"([\d.]+) photos/s", output)


def find_number(pattern: str, text: str) -> float:
    """The first group of the first match. Raises ValueError if there is none."""
    if not (found := re.search(pattern, text, re.MULTILINE)):
        raise ValueError(f"expected {pattern} in the output of a stage")
    return float(found[1])
