"""Names that tensors had in checkpoints and exports of older versions, and today's."""

# Beginnings and ends of tensors' names, as older versions wrote them -> today's.
RENAMED_TENSORS = {"shortcuts.": "skip_connections."}
RENAMED_MOMENTS = {
    ".mean": ".exp_avg",
    ".square": ".exp_avg_sq",
    ".velocity": ".momentum_buffer",
    ".variance": ".exp_avg_sq_row",
}


def translate_tensor_name(name: str) -> str:
    """Returns the name that a tensor of an older checkpoint or export has today."""
    for old, new in RENAMED_TENSORS.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
    for old, new in RENAMED_MOMENTS.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name
