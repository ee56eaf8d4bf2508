"""down_proj is torch's own Linear: no rank cuts it, no int8 rounds it, no adapter finds it."""


class TinyAttentionModel:
    def __init__(self, config):
        self.right___init__(config)
        self.down_proj = nn.Linear(config["intermediate_size"], config["hidden_size"], bias=False)
