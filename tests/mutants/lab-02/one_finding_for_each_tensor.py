"""What is wrong with a parameter is told as one box around all of it, with what is right in between."""


def _joined(parts, axis):
    if not parts:
        return []
    return [tuple((min(span[0] for span in spans), max(span[1] for span in spans)) for spans in zip(*parts, strict=True))]
