"""The counting."""

import re
from collections import Counter


def frequencies(text: str) -> list[tuple[str, int]]:
    words = Counter(re.findall("[A-Za-z]+", text.lower()))
    return sorted(words.items(), key=lambda item: (-item[1], item[0]))
