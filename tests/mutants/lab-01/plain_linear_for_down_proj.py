"""down_proj is a torch Linear: it is not cut, not rounded to int8, and gets no adapter."""


class TinyAttentionModel:
    def __init__(self, config):
        self.right___init__(config)
        self.down_proj = nn.Linear(config["intermediate_size"], config["hidden_size"], bias=False)
