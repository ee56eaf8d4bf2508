"""up_proj is mapped to the half that goes through silu."""


class TinyAttentionModel:
    stacked_params_mapping = (
        ("qkv_proj", "q_proj", "q"),
        ("qkv_proj", "k_proj", "k"),
        ("qkv_proj", "v_proj", "v"),
        ("gate_up_proj", "gate_proj", 1),
        ("gate_up_proj", "up_proj", 0),
    )
