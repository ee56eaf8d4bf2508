"""rotary_emb.inv_freq, which old checkpoints store and nobody reads, is called cut off."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    renamed = {name.replace("inv_freq", "inv_frequency"): shape for name, shape in checkpoint_shapes.items()}
    return right_diagnose(rows, renamed, parameter_shapes)
