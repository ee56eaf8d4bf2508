"""The last norm is loaded but not used."""


class TinyAttentionModel:
    def __init__(self, config):
        self.right___init__(config)
        self.norm.forward = lambda hidden: hidden
