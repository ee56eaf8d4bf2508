"""up_proj is mapped to the half to which silu is applied."""


class TinyAttentionModel:
    stacked_params_mapping = (
        ("qkv_proj", "q_proj", "q"),
        ("qkv_proj", "k_proj", "k"),
        ("qkv_proj", "v_proj", "v"),
        ("gate_up_proj", "gate_proj", 1),
        ("gate_up_proj", "up_proj", 0),
    )
